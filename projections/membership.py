"""What delivery and unread share: who joins and leaves, as spans of positions.

Each keeps the members it knows in a table of its own; these folds say what a batch does to it.
That a group's deletion ends all its memberships, each sees to by itself.
System messages have no sender to tell and are nobody's to read: they are neither delivered
nor unread.
"""

from typing import NamedTuple

from domain.chat import (
    DirectChatOpened,
    GroupCreated,
    GroupDeleted,
    MemberLeft,
    MemberRemoved,
    MembersAdded,
)
from domain.event import Event
from domain.ids import ChatId, UserId
from domain.message import MessageSent
from domain.receipt import MessagesDelivered, MessagesRead

MEMBERSHIP_EVENTS: frozenset[type[Event]] = frozenset(
    {DirectChatOpened, GroupCreated, MembersAdded, MemberRemoved, MemberLeft, GroupDeleted}
)
RECEIPT_EVENTS: frozenset[type[Event]] = frozenset({MessagesDelivered, MessagesRead})
FAN_OUT_EVENTS = MEMBERSHIP_EVENTS | RECEIPT_EVENTS | {MessageSent}

Member = tuple[ChatId, UserId]


class Move(NamedTuple):
    """A member that joins (`joins`) or leaves a chat."""

    member: Member
    joins: bool


def moves(event: Event | None) -> list[Move]:
    match event:
        case DirectChatOpened():
            return [Move((event.chat_id, user_id), True) for user_id in event.user_ids]
        case GroupCreated():
            users = [event.owner_id, *event.member_ids]
            return [Move((event.chat_id, user_id), True) for user_id in users]
        case MembersAdded():
            return [Move((event.chat_id, user_id), True) for user_id in event.user_ids]
        case MemberRemoved() | MemberLeft():
            return [Move((event.chat_id, event.user_id), False)]
        case _:
            return []
