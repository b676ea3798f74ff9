"""remove-member: the owner removes anybody else, an admin only members."""

from typing import Annotated

from commands.command import Command, Context, Decision, View, open_group
from commands.members import announce, membership_claims
from domain.chat import MemberRemoved
from domain.ids import UUID_TEXT, ChatId, UserId
from domain.refusals import Forbidden, Invalid, NotFound


class RemoveMember(Command, frozen=True, kw_only=True):
    chat_id: Annotated[ChatId, UUID_TEXT]
    user_id: Annotated[UserId, UUID_TEXT]


def decide(remove: RemoveMember, context: Context, view: View) -> Decision:
    chat = open_group(view, remove.chat_id, context.actor)
    role = chat.roles[context.actor]
    if role == "member":
        raise Forbidden("only the owner or an admin removes members")
    if remove.user_id == context.actor:
        raise Invalid("to leave a group yourself, use leave-group", field="user_id")
    if remove.user_id not in chat.joined:
        raise NotFound("there is no such participant")
    if remove.user_id not in chat.roles:
        return Decision([])
    if role == "admin" and chat.roles[remove.user_id] != "member":
        raise Forbidden("an admin removes members only, not admins or the owner")
    removed = MemberRemoved(chat_id=remove.chat_id, by=context.actor, user_id=remove.user_id)
    told = announce(context, 0, remove.chat_id, "member_removed", [remove.user_id])
    releases = membership_claims(remove.chat_id, [remove.user_id])
    return Decision([removed, told], releases=releases)
