"""change-role: the owner appoints and dismisses admins."""

from typing import Annotated

from commands.command import Command, Context, Decision, View, open_group
from commands.members import announce
from domain.chat import AssignedRole, RoleChanged
from domain.ids import UUID_TEXT, ChatId, UserId
from domain.message import SystemKind
from domain.refusals import Forbidden, Invalid, NotFound


class ChangeRole(Command, frozen=True, kw_only=True):
    chat_id: Annotated[ChatId, UUID_TEXT]
    user_id: Annotated[UserId, UUID_TEXT]
    role: AssignedRole


def decide(change: ChangeRole, context: Context, view: View) -> Decision:
    chat = open_group(view, change.chat_id, context.actor)
    if context.actor != chat.owner_id:
        raise Forbidden("only the owner changes roles")
    if change.user_id not in chat.roles:
        raise NotFound("there is no such participant")
    if change.user_id == context.actor:
        raise Invalid("an owner stops being it by transfer-ownership", field="user_id")
    if chat.roles[change.user_id] == change.role:
        return Decision([])
    changed = RoleChanged(
        chat_id=change.chat_id, by=context.actor, user_id=change.user_id, role=change.role
    )
    kind: SystemKind = "admin_appointed" if change.role == "admin" else "admin_dismissed"
    return Decision([changed, announce(context, 0, change.chat_id, kind, [change.user_id])])
