"""leave-group: who leaves keeps nothing of it; an owner hands it on (`members.depart`)."""

from typing import Annotated

from commands.command import Answer, Command, Context, Decision, View, open_group
from commands.members import depart
from domain.ids import UUID_TEXT, ChatId, UserId


class LeaveGroup(Command, frozen=True, kw_only=True):
    chat_id: Annotated[ChatId, UUID_TEXT]


class Left(Answer, frozen=True, kw_only=True):
    """`new_owner_id` is null unless the ownership moved."""

    new_owner_id: UserId | None = None


def decide(leave: LeaveGroup, context: Context, view: View) -> Decision:
    chat = open_group(view, leave.chat_id, context.actor)
    departure = depart(context, leave.chat_id, chat)
    answer = Left(new_owner_id=departure.heir)
    return Decision(departure.events, answer, releases=departure.releases)
