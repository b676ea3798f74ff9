"""transfer-ownership: the owner hands the group to another participant, and is an admin then."""

from typing import Annotated

from commands.command import Command, Context, Decision, View, open_group
from commands.members import announce
from domain.chat import OwnershipTransferred, RoleChanged
from domain.ids import UUID_TEXT, ChatId, UserId
from domain.refusals import Forbidden, NotFound


class TransferOwnership(Command, frozen=True, kw_only=True):
    chat_id: Annotated[ChatId, UUID_TEXT]
    user_id: Annotated[UserId, UUID_TEXT]


def decide(transfer: TransferOwnership, context: Context, view: View) -> Decision:
    chat_id, former, heir = transfer.chat_id, context.actor, transfer.user_id
    chat = open_group(view, chat_id, former)
    if former != chat.owner_id:
        raise Forbidden("only the owner hands on the group")
    if heir not in chat.roles:
        raise NotFound("there is no such participant")
    if heir == former:
        return Decision([])
    return Decision(
        [
            OwnershipTransferred(chat_id=chat_id, from_id=former, to_id=heir),
            RoleChanged(chat_id=chat_id, by=former, user_id=former, role="admin"),
            announce(context, 0, chat_id, "ownership_transferred", [heir]),
        ]
    )
