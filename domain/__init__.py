"""The facts of the messenger: events, the states folded from them, and refusals.

Everything here is pure: standard library and msgspec, no clock, no I/O. `EVENTS` is the
explicit table of every event that the log may hold; a new event is a line in it, a struct
in its noun's module and a golden file in tests/golden/events.
"""

from domain.chat import (
    GroupCreated,
    GroupDeleted,
    GroupUpdated,
    MemberLeft,
    MemberRemoved,
    MembersAdded,
    OwnershipTransferred,
)
from domain.event import Event
from domain.message import MessageSent, SystemMessageSent
from domain.receipt import MessagesDelivered, MessagesRead
from domain.user import PasswordChanged, ProfileUpdated, UserRegistered

EVENTS: tuple[type[Event], ...] = (
    UserRegistered,
    ProfileUpdated,
    PasswordChanged,
    GroupCreated,
    GroupUpdated,
    GroupDeleted,
    MembersAdded,
    MemberRemoved,
    MemberLeft,
    OwnershipTransferred,
    MessageSent,
    SystemMessageSent,
    MessagesDelivered,
    MessagesRead,
)
