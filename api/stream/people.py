"""What is between the users of this process and others: contacts, requests, blocks.

Kept for users with open connections only. What comes from a read model never overwrites what
the log said later.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from domain.contact import ContactEvent, Standing
from domain.ids import UserId


class Known(NamedTuple):
    """What stands between a user and another, as of a position. `is_listed`: the user has a row
    of it; where the other alone blocks, there is none, and nothing may tell of it."""

    position: int
    standing: Standing
    is_listed: bool


class People:
    """Standings by pair, for the users that were taken in."""

    def __init__(self) -> None:
        self._of: dict[UserId, dict[UserId, Known]] = {}
        self._watched_by: defaultdict[UserId, set[UserId]] = defaultdict(set)

    def take_in(self, user_id: UserId) -> None:
        self._of.setdefault(user_id, {})

    def let_go(self, user_id: UserId) -> None:
        for other in self._of.pop(user_id, {}):
            self._unwatch(user_id, other)

    def load(self, user_id: UserId, standings: Mapping[UserId, Known]) -> None:
        for other, known in standings.items():
            self._learn(user_id, other, known)

    def apply(self, event: ContactEvent, position: int) -> None:
        for user_id, other in (
            (event.user_id, event.contact_id),
            (event.contact_id, event.user_id),
        ):
            self._learn(user_id, other, known_by(user_id, event.standing, position))

    def known_to(self, user_id: UserId) -> set[UserId]:
        """The other way round, of somebody who was taken in."""
        of_user = self._of.get(user_id, {})
        return {other for other, known in of_user.items() if known.is_listed}

    def who_watch(self, person: UserId) -> set[UserId]:
        """Those who have somebody among their contacts, in whatever state."""
        return self._watched_by.get(person, set())

    def may_see(self, viewer: UserId, person: UserId) -> bool:
        """Whether `person` does not block `viewer`."""
        known = self._of.get(viewer, {}).get(person)
        return known is None or person not in known.standing.blocked_at

    def may_talk(self, one: UserId, other: UserId) -> bool:
        """Whether they are contacts and neither blocks the other; `one` is taken in."""
        known = self._of.get(one, {}).get(other)
        return (
            known is not None
            and known.standing.accepted_at is not None
            and not known.standing.blocked_at
        )

    def _learn(self, user_id: UserId, other: UserId, known: Known) -> None:
        of_user = self._of.get(user_id)
        if of_user is None:
            return
        before = of_user.get(other)
        if before is None or before.position <= known.position:
            of_user[other] = known
            if known.is_listed:
                self._watched_by[other].add(user_id)
            else:
                self._unwatch(user_id, other)

    def _unwatch(self, user_id: UserId, other: UserId) -> None:
        watchers = self._watched_by.get(other, set())
        watchers.discard(user_id)
        if not watchers:
            self._watched_by.pop(other, None)


def known_by(user_id: UserId, standing: Standing, position: int) -> Known:
    is_listed = standing.requested_by is not None or user_id in standing.blocked_at
    return Known(position, standing, is_listed)
