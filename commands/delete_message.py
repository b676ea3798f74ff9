"""delete-message: one's own, or any of a group as its owner or an admin; for everybody."""

from typing import Annotated

from commands.command import Command, Context, Decision, View
from commands.messages import open_message
from domain.ids import UUID_TEXT, MessageId
from domain.message import MessageDeleted
from domain.refusals import Forbidden


class DeleteMessage(Command, frozen=True, kw_only=True):
    message_id: Annotated[MessageId, UUID_TEXT]


def decide(delete: DeleteMessage, context: Context, view: View) -> Decision:
    message, chat = open_message(view, delete.message_id, context.actor)
    if message.sender_id is None:
        raise Forbidden("nobody deletes what the group itself tells")
    if message.sender_id != context.actor and chat.roles[context.actor] == "member":
        raise Forbidden("only the sender, the owner or an admin deletes a message")
    if message.is_deleted:
        return Decision([])
    deleted = MessageDeleted(
        message_id=delete.message_id,
        chat_id=message.chat_id,
        by=context.actor,
        sent_position=message.position,
    )
    return Decision([deleted])
