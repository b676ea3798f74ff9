"""What the commands about one message share: finding it, if the caller may know of it."""

from commands.command import View, open_chat
from domain.chat import Chat
from domain.ids import MessageId, UserId
from domain.message import Message
from domain.refusals import NotFound


def open_message(view: View, message_id: MessageId, actor: UserId) -> tuple[Message, Chat]:
    """The message and its chat, if the actor is an active participant; else as if there were
    none."""
    message = view.message(message_id)
    if not message.exists:
        raise NotFound("there is no such message")
    try:
        return message, open_chat(view, message.chat_id, actor)
    except NotFound:
        raise NotFound("there is no such message") from None
