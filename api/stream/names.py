"""What users are called now: loaded once, kept current by the log, forgotten when erased.

What changes a name while it is being loaded makes the load look again: it may have read before.
"""

from collections.abc import Iterable

from domain.event import Event
from domain.ids import UserId, user_stream
from domain.user import AccountDeleted, ProfileUpdated
from infra.executor import Executor
from infra.keyring import KeyId, Keyring
from projections.users import ERASED_NAME

MAX_NAMES = 50_000
MAX_ROUNDS = 10


class Names:
    """`load` before `of`."""

    def __init__(self, executor: Executor, keyring: Keyring) -> None:
        self._executor = executor
        self._names: dict[UserId, str] = {}
        # For each load that is under way, those whose names have changed since it began.
        self._changed: list[set[UserId]] = []
        keyring.listen(self._erase)

    async def load(self, user_ids: Iterable[UserId]) -> None:
        wanted = set(user_ids)
        for _ in range(MAX_ROUNDS):
            unknown = wanted - self._names.keys()
            if not unknown:
                return
            if len(self._names) + len(unknown) > MAX_NAMES:
                self._names.clear()
            await self._load(unknown)

    async def _load(self, user_ids: set[UserId]) -> None:
        changed: set[UserId] = set()
        self._changed.append(changed)
        try:
            await self._executor.refresh([user_stream(user_id) for user_id in user_ids])
        finally:
            self._changed = [one for one in self._changed if one is not changed]
        for user_id in user_ids - changed:
            known = self._executor.states.get(user_stream(user_id))
            name = known.state.display_name if known is not None else None
            self._names[user_id] = name or ERASED_NAME

    def of(self, user_id: UserId) -> str:
        return self._names.get(user_id, ERASED_NAME)

    def apply(self, event: Event) -> None:
        """`event` is opened."""
        match event:
            case ProfileUpdated() if event.user_id in self._names:
                self.forget(event)
                self._names[event.user_id] = event.display_name or ERASED_NAME
            case _:
                self.forget(event)

    def forget(self, event: Event) -> None:
        """What it says of a name may not be known here; what was known does not hold."""
        if isinstance(event, ProfileUpdated | AccountDeleted):
            self._forget(event.user_id)

    def clear(self) -> None:
        self._names.clear()

    def _erase(self, key_id: KeyId) -> None:
        if key_id.purpose == "profile":
            self._forget(key_id.user_id)

    def _forget(self, user_id: UserId) -> None:
        self._names.pop(user_id, None)
        for changed in self._changed:
            changed.add(user_id)
