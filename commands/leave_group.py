"""leave-group: an owner who leaves hands the group to the first admin, else to the longest
member (data-model.md, entity 4). When the last one leaves, the group is deleted."""

from typing import Annotated

from commands.command import Answer, Command, Context, Decision, View, open_chat
from commands.members import announce
from commands.slugs import slug_claim
from domain.chat import GroupDeleted, MemberLeft, OwnershipTransferred
from domain.event import Event
from domain.ids import UUID_TEXT, ChatId, UserId


class LeaveGroup(Command, frozen=True, kw_only=True):
    chat_id: Annotated[ChatId, UUID_TEXT]


class Left(Answer, frozen=True, kw_only=True):
    """`new_owner_id` is null unless the ownership moved."""

    new_owner_id: UserId | None = None


def decide(leave: LeaveGroup, context: Context, view: View) -> Decision:
    chat = open_chat(view, leave.chat_id, context.actor)
    left = MemberLeft(chat_id=leave.chat_id, user_id=context.actor)
    told = announce(context, 0, leave.chat_id, "member_left", [context.actor])
    events: list[Event] = [left, told]
    if context.actor != chat.owner_id:
        return Decision(events, Left())
    heir = chat.successor()
    if heir is None:
        events.append(GroupDeleted(chat_id=leave.chat_id, by=context.actor))
        return Decision(events, Left(), releases=(slug_claim(chat.slug, leave.chat_id),))
    moved = OwnershipTransferred(chat_id=leave.chat_id, from_id=context.actor, to_id=heir)
    events += [moved, announce(context, 1, leave.chat_id, "ownership_transferred", [heir])]
    return Decision(events, Left(new_owner_id=heir))
