"""How an event moves people in and out of a chat, for all that follows memberships here."""

from typing import NamedTuple

from domain.chat import (
    ChatEvent,
    DirectChatOpened,
    GroupCreated,
    GroupDeleted,
    MemberLeft,
    MemberRemoved,
    MembersAdded,
)
from domain.event import Event
from domain.ids import UserId

MOVING: tuple[type[ChatEvent], ...] = (
    DirectChatOpened,
    GroupCreated,
    MembersAdded,
    MemberRemoved,
    MemberLeft,
    GroupDeleted,
)
MOVING_TYPES = [event.type for event in MOVING]


class Moves(NamedTuple):
    """`empties`: all who are in it leave."""

    joining: tuple[UserId, ...] = ()
    leaving: tuple[UserId, ...] = ()
    empties: bool = False


NOBODY = Moves()


def moves_of(event: Event) -> Moves:
    match event:
        case DirectChatOpened() | MembersAdded():
            return Moves(joining=tuple(event.user_ids))
        case GroupCreated():
            return Moves(joining=(event.owner_id, *event.member_ids))
        case MemberRemoved() | MemberLeft():
            return Moves(leaving=(event.user_id,))
        case GroupDeleted():
            return Moves(empties=True)
        case _:
            return NOBODY
