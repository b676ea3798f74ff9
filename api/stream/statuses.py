"""How everybody's presence changed last, since a position: who comes back is told from memory.

When everybody comes back at once, the log between is full of everybody's comings and goings: read
for each client, that would be the square of them. At most MAX_STATUSES are kept, the latest; whom
an older position is asked about reaches back once for all.
"""

from collections.abc import Iterable
from itertools import takewhile
from typing import NamedTuple

from domain.event import Recorded
from domain.ids import UserId
from domain.user import StatusChanged

MAX_STATUSES = 50_000


class Status(NamedTuple):
    recorded: Recorded
    event: StatusChanged


class Statuses:
    """All changes after `since` are known. `changed` in log order."""

    def __init__(self) -> None:
        self.since = 0
        self._latest: dict[UserId, Status] = {}  # the last change last

    def begin(self, position: int) -> None:
        self.since = position
        self._latest.clear()

    def changed(self, recorded: Recorded, event: StatusChanged) -> None:
        self._latest.pop(event.user_id, None)
        self._latest[event.user_id] = Status(recorded, event)
        if len(self._latest) > MAX_STATUSES:
            oldest = self._latest.pop(next(iter(self._latest)))
            self.since = oldest.recorded.position

    def reach_back(self, after: int, earlier: Iterable[Recorded]) -> None:
        """`earlier`: what changed in (`after`, `since`]."""
        if after >= self.since:
            return
        later, self.since, self._latest = self._latest, after, {}
        for recorded in earlier:
            if isinstance(recorded.event, StatusChanged):
                self.changed(recorded, recorded.event)
        for status in later.values():
            self.changed(*status)

    def after(self, position: int) -> list[Status]:
        """The last changes that are after a position; all of those only from `since` on."""
        return list(
            takewhile(
                lambda status: status.recorded.position > position,
                reversed(self._latest.values()),
            )
        )
