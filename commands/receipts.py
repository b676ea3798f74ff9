"""What the two receipt commands share: which position a named message marks."""

from commands.command import View
from domain.ids import ChatId, MessageId
from domain.refusals import NotFound


def marked_position(view: View, chat_id: ChatId, message_id: MessageId) -> int:
    message = view.message(message_id)
    if not message.exists or message.chat_id != chat_id:
        raise NotFound("there is no such message in this chat")
    return message.position
