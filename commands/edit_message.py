"""edit-message: the sender says it otherwise; the log keeps every version."""

from typing import Annotated

from msgspec import Meta

from commands.command import Command, Context, Decision, View
from commands.formatting import Metadata, formatting_of
from commands.messages import open_message
from commands.sending import check_may_send
from domain.ids import UUID_TEXT, MessageId
from domain.message import MAX_CONTENT_CHARACTERS, MessageEdited, text_fingerprint
from domain.refusals import Conflict, Forbidden, Invalid


class EditMessage(Command, frozen=True, kw_only=True):
    """`content` may be empty where there are attachments, as in send-message; `metadata` too:
    left out, the text is plain from now on."""

    message_id: Annotated[MessageId, UUID_TEXT]
    content: Annotated[str, Meta(max_length=MAX_CONTENT_CHARACTERS)]
    metadata: Metadata | None = None


def decide(edit: EditMessage, context: Context, view: View) -> Decision:
    formatting = formatting_of(edit.metadata, edit.content)
    message, chat = open_message(view, edit.message_id, context.actor)
    if message.sender_id != context.actor:
        raise Forbidden("only the sender edits a message")
    if message.is_deleted:
        raise Conflict("the message is deleted")
    check_may_send(view, chat, context.actor)
    if not edit.content and not message.attachment_ids:
        raise Invalid("a message without attachments needs a text", field="content")
    if message.shown == text_fingerprint(edit.content, formatting):
        return Decision([])
    edited = MessageEdited(
        message_id=edit.message_id,
        chat_id=message.chat_id,
        sender_id=context.actor,
        content=edit.content,
        formatting=formatting,
    )
    return Decision([edited])
