"""The open connections of a process: how many, whose, of which sessions, and which are silent."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from domain.ids import UserId
from infra.tokens import Caller

K = TypeVar("K")


class Open(Protocol):
    """A connection, as it is kept here."""

    heard_at: float
    pinged_at: float

    def end_session(self) -> None: ...

    def ping(self) -> None: ...

    def end(self, code: int, reason: str) -> None: ...


class Sockets:
    """`max_sockets` in all, `max_of_user` for one user."""

    def __init__(self, *, max_sockets: int, max_of_user: int) -> None:
        self._max_sockets = max_sockets
        self._max_of_user = max_of_user
        self._all: set[Open] = set()
        self._of_user: defaultdict[UserId, set[Open]] = defaultdict(set)
        self._of_session: defaultdict[str, set[Open]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def are_too_many(self) -> bool:
        return len(self._all) >= self._max_sockets

    def add(self, one: Open) -> None:
        self._all.add(one)

    def sign_in(self, one: Open, caller: Caller) -> bool:
        """False if the user has too many already."""
        if len(self._of_user[caller.user_id]) >= self._max_of_user:
            return False
        self._of_user[caller.user_id].add(one)
        self._of_session[caller.session_id].add(one)
        return True

    def remove(self, one: Open, caller: Caller | None) -> None:
        self._all.discard(one)
        if caller is not None:
            _discard(self._of_user, caller.user_id, one)
            _discard(self._of_session, caller.session_id, one)

    def of_sessions(self, session_ids: Iterable[str]) -> list[Open]:
        return [one for session_id in session_ids for one in self._of_session.get(session_id, ())]

    def sweep(
        self, heartbeat_seconds: float, ping: Callable[[Open], None], close: Callable[[Open], None]
    ) -> None:
        """Whoever is silent for a heartbeat is asked, for two is closed."""
        now = time.monotonic()
        for one in tuple(self._all):
            silent_seconds = now - one.heard_at
            if silent_seconds >= 2 * heartbeat_seconds:
                close(one)
            elif silent_seconds >= heartbeat_seconds and one.pinged_at < one.heard_at:
                one.pinged_at = now
                ping(one)


def _discard(sets: defaultdict[K, set[Open]], key: K, one: Open) -> None:
    sets[key].discard(one)
    if not sets[key]:
        del sets[key]
