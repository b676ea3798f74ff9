"""Two users and what is between them: folded from the stream `contact-A-B`, a sorted pair.

Each event says what happened, and how things stand from then on (`standing`): so the last
event of a stream alone is its state, and the two rows of the read model follow from it.

A block is one user's own matter. It lies over what is between the two and leaves it alone, so
that unblocking shows what there is now. Rules: data-model.md, entity 2; contract.md, "Block".
"""

from datetime import datetime
from typing import ClassVar

import msgspec

from domain.event import Event, Place
from domain.ids import StreamId, UserId, contact_stream


class Standing(msgspec.Struct, frozen=True):
    """`requested_by` and `requested_at` are there while a request is open or was accepted;
    `blocked_at` has those who block the other, each with the time since when."""

    requested_by: UserId | None = None
    requested_at: datetime | None = None
    accepted_at: datetime | None = None
    blocked_at: dict[UserId, datetime] = {}


class ContactEvent(Event, frozen=True, kw_only=True):
    """`user_id` did it, `contact_id` is the other."""

    user_id: UserId
    contact_id: UserId
    standing: Standing

    @property
    def stream(self) -> StreamId:
        return contact_stream(self.user_id, self.contact_id)


class ContactRequested(ContactEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "contact_requested"


class ContactAccepted(ContactEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "contact_accepted"


class ContactRemoved(ContactEvent, frozen=True, kw_only=True):
    """Removed, declined or withdrawn; for a deleted account the blocks go too."""

    type: ClassVar[str] = "contact_removed"


class ContactBlocked(ContactEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "contact_blocked"


class ContactUnblocked(ContactEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "contact_unblocked"


CONTACT_EVENTS: frozenset[type[Event]] = frozenset(
    {ContactRequested, ContactAccepted, ContactRemoved, ContactBlocked, ContactUnblocked}
)


class Contact(msgspec.Struct, frozen=True):
    standing: Standing = Standing()

    @property
    def is_requested(self) -> bool:
        return self.standing.requested_by is not None and self.standing.accepted_at is None

    @property
    def is_accepted(self) -> bool:
        return self.standing.accepted_at is not None

    def is_blocked_by(self, user_id: UserId) -> bool:
        return user_id in self.standing.blocked_at


def evolve(contact: Contact, event: Event, place: Place) -> Contact:
    assert isinstance(event, ContactEvent), event
    return Contact(event.standing)
