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
    position: int
    standing: Standing


class People:
    """Standings by pair, for the users that were taken in."""

    def __init__(self) -> None:
        self._of: dict[UserId, dict[UserId, Known]] = {}
        self._watched_by: defaultdict[UserId, set[UserId]] = defaultdict(set)

    def take_in(self, user_id: UserId) -> None:
        self._of.setdefault(user_id, {})

    def let_go(self, user_id: UserId) -> None:
        for other in self._of.pop(user_id, {}):
            watchers = self._watched_by[other]
            watchers.discard(user_id)
            if not watchers:
                del self._watched_by[other]

    def load(self, user_id: UserId, standings: Mapping[UserId, Known]) -> None:
        for other, known in standings.items():
            self._learn(user_id, other, known)

    def apply(self, event: ContactEvent, position: int) -> None:
        known = Known(position, event.standing)
        self._learn(event.user_id, event.contact_id, known)
        self._learn(event.contact_id, event.user_id, known)

    def known_to(self, user_id: UserId) -> set[UserId]:
        """The other way round, of somebody who was taken in."""
        return set(self._of.get(user_id, ()))

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
            self._watched_by[other].add(user_id)
