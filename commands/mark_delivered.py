"""mark-delivered: the caller's client has everything of the chat up to a message."""

from typing import Annotated

from commands.command import Command, Context, Decision, View, open_chat
from commands.receipts import marked_position
from domain.ids import UUID_TEXT, ChatId, MessageId
from domain.receipt import MessagesDelivered


class MarkDelivered(Command, frozen=True, kw_only=True):
    chat_id: Annotated[ChatId, UUID_TEXT]
    up_to_message_id: Annotated[MessageId, UUID_TEXT]


def decide(mark: MarkDelivered, context: Context, view: View) -> Decision:
    open_chat(view, mark.chat_id, context.actor)
    up_to = marked_position(view, mark.chat_id, mark.up_to_message_id)
    receipt = view.receipt(mark.chat_id, context.actor)
    if up_to <= receipt.delivered_up_to:
        return Decision([])
    delivered = MessagesDelivered(
        chat_id=mark.chat_id,
        user_id=context.actor,
        delivered_up_to=up_to,
        read_up_to=receipt.read_up_to,
    )
    return Decision([delivered])
