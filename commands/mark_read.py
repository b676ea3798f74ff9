"""mark-read: the caller has read the chat up to a message, or all that others have sent."""

from typing import Annotated

from commands.command import Command, Context, Decision, NewestMessage, View, open_chat
from commands.receipts import marked_position
from domain.ids import UUID_TEXT, ChatId, MessageId
from domain.receipt import MessagesRead


class MarkRead(Command, frozen=True, kw_only=True):
    chat_id: Annotated[ChatId, UUID_TEXT]
    up_to_message_id: Annotated[MessageId, UUID_TEXT] | None = None


def decide(mark: MarkRead, context: Context, view: View) -> Decision:
    open_chat(view, mark.chat_id, context.actor)
    if mark.up_to_message_id is None:
        up_to: int = view.fact(NewestMessage(mark.chat_id, besides=context.actor))
    else:
        up_to = marked_position(view, mark.chat_id, mark.up_to_message_id)
    receipt = view.receipt(mark.chat_id, context.actor)
    if up_to <= receipt.read_up_to:
        return Decision([])
    read = MessagesRead(
        chat_id=mark.chat_id,
        user_id=context.actor,
        delivered_up_to=max(up_to, receipt.delivered_up_to),
        read_up_to=up_to,
    )
    return Decision([read])
