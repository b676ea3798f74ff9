"""The facts of the messenger: events, the states folded from them, and refusals.

Everything here is pure: standard library and msgspec, no clock, no I/O. `EVENTS` is the
explicit table of every event that the log may hold; a new event is a line in it, a struct
in its noun's module and a golden file in tests/golden/events.
"""

from domain.attachment import AttachmentRemoved, AttachmentUploaded
from domain.chat import (
    DirectChatOpened,
    GroupCreated,
    GroupDeleted,
    GroupUpdated,
    MemberLeft,
    MemberRemoved,
    MembersAdded,
    OwnershipTransferred,
    RoleChanged,
)
from domain.contact import (
    ContactAccepted,
    ContactBlocked,
    ContactRemoved,
    ContactRequested,
    ContactUnblocked,
)
from domain.event import Event
from domain.message import (
    MessageDeleted,
    MessageEdited,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
    SystemMessageSent,
)
from domain.receipt import DeliveriesRecorded, MessagesDelivered, MessagesRead
from domain.user import (
    AccountDeleted,
    PasswordChanged,
    ProfileUpdated,
    StatusChanged,
    UserRegistered,
)

EVENTS: tuple[type[Event], ...] = (
    UserRegistered,
    ProfileUpdated,
    PasswordChanged,
    StatusChanged,
    AccountDeleted,
    ContactRequested,
    ContactAccepted,
    ContactRemoved,
    ContactBlocked,
    ContactUnblocked,
    DirectChatOpened,
    GroupCreated,
    GroupUpdated,
    GroupDeleted,
    MembersAdded,
    MemberRemoved,
    MemberLeft,
    RoleChanged,
    OwnershipTransferred,
    AttachmentUploaded,
    AttachmentRemoved,
    MessageSent,
    MessageEdited,
    MessageDeleted,
    ReactionAdded,
    ReactionRemoved,
    SystemMessageSent,
    MessagesDelivered,
    MessagesRead,
    DeliveriesRecorded,
)
