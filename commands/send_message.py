"""send-message: text with formatting, images and replies, by active participants only.

On the hot path it looks at the chat and the sender (and in a direct chat at what is between
the two), which are cached, and at the new message's stream, which is presumed empty: the
guards of all tell if that was wrong. Attachments belong to a message from their upload on, so
that a message which takes its own takes no other's, and none twice.
"""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from commands.command import Answer, Command, Context, Decision, View, open_chat
from commands.formatting import Metadata, formatting_of
from commands.sending import check_may_send
from domain.attachment import MAX_ATTACHMENTS
from domain.ids import UUID_TEXT, AttachmentId, ChatId, MessageId, UserId
from domain.message import (
    MAX_CONTENT_CHARACTERS,
    Formatting,
    Message,
    MessageSent,
    fingerprint,
)
from domain.refusals import Conflict, Invalid, NotFound


class SendMessage(Command, frozen=True, kw_only=True):
    chat_id: Annotated[ChatId, UUID_TEXT]
    content: Annotated[str, Meta(max_length=MAX_CONTENT_CHARACTERS)]
    message_id: Annotated[MessageId, UUID_TEXT] | None = None
    reply_to_id: Annotated[MessageId, UUID_TEXT] | None = None
    metadata: Metadata | None = None
    attachment_ids: (
        Annotated[list[Annotated[AttachmentId, UUID_TEXT]], Meta(max_length=MAX_ATTACHMENTS)] | None
    ) = None

    @property
    def attachments(self) -> list[AttachmentId]:
        return self.attachment_ids or []


class Sent(Answer, frozen=True, kw_only=True):
    message_id: MessageId
    created_at: datetime


def decide(send: SendMessage, context: Context, view: View) -> Decision:
    _check_whole(send)
    message_id = send.message_id or MessageId(context.id(0))
    formatting = formatting_of(send.metadata, send.content)
    message = view.new_message(message_id)
    if message.exists and _is_same(send, formatting, message, context):
        answer = Sent(message_id=message_id, created_at=message.created_at)
        return Decision([], answer, repeats=message.position)
    chat = open_chat(view, send.chat_id, context.actor)
    if message.exists:
        raise Conflict("this message_id is taken")
    check_may_send(view, chat, context.actor)
    if send.reply_to_id is not None:
        target = view.message(send.reply_to_id)
        if not target.exists or target.chat_id != send.chat_id:
            raise NotFound("there is no such message to reply to in this chat")
    _check_attachments(send, context.actor, view)
    sent = MessageSent(
        message_id=message_id,
        chat_id=send.chat_id,
        sender_id=context.actor,
        content=send.content,
        formatting=formatting,
        reply_to_id=send.reply_to_id,
        attachment_ids=send.attachments,
    )
    return Decision([sent], Sent(message_id=message_id, created_at=context.now))


def _check_whole(send: SendMessage) -> None:
    """What JSON Schema can't say."""
    if not send.content and not send.attachments:
        raise Invalid("a message without attachments needs a text", field="content")
    if len(set(send.attachments)) < len(send.attachments):
        raise Invalid("an attachment is named twice", field="attachment_ids")
    if send.attachments and send.message_id is None:
        raise Invalid(
            "attachments belong to the message that they were uploaded for: name it",
            field="message_id",
        )


def _check_attachments(send: SendMessage, actor: UserId, view: View) -> None:
    bound = (send.chat_id, send.message_id, actor)
    for attachment in view.attachments(send.attachments):
        if (attachment.chat_id, attachment.message_id, attachment.sender_id) != bound:
            raise NotFound("there is no such attachment of yours for this chat and message")
        if attachment.is_removed:
            raise NotFound("the attachment was not sent in time and is gone: upload it again")


def _is_same(send: SendMessage, formatting: Formatting, message: Message, context: Context) -> bool:
    """The same message sent again answers as at first (contract.md, section 2)."""
    return (
        message.chat_id == send.chat_id
        and message.sender_id == context.actor
        and message.fingerprint
        == fingerprint(send.content, formatting, send.reply_to_id, send.attachments)
    )
