"""send-message: text with formatting and replies, by active participants only.

On the hot path it looks at the chat, which is cached, and at the new message's stream,
which is presumed empty: the guards of both tell if that was wrong.
"""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from commands.command import Answer, Command, Context, Decision, View, open_chat
from domain.ids import UUID_TEXT, ChatId, MessageId
from domain.message import (
    MAX_CONTENT_CHARACTERS,
    Formatting,
    Message,
    MessageSent,
    fingerprint,
)
from domain.refusals import Conflict, Invalid, NotFound

MAX_RANGES_PER_STYLE = 1_000

Range = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=2, max_length=2)]
Ranges = Annotated[list[Range], Meta(max_length=MAX_RANGES_PER_STYLE)]


class Styles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Half-open character ranges [start, end) by style."""

    bold: Ranges = []
    italic: Ranges = []
    underline: Ranges = []
    strikethrough: Ranges = []
    code: Ranges = []


class Metadata(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    formatting: Styles | None = None


class SendMessage(Command, frozen=True, kw_only=True):
    chat_id: Annotated[ChatId, UUID_TEXT]
    content: Annotated[str, Meta(min_length=1, max_length=MAX_CONTENT_CHARACTERS)]
    message_id: Annotated[MessageId, UUID_TEXT] | None = None
    reply_to_id: Annotated[MessageId, UUID_TEXT] | None = None
    metadata: Metadata | None = None


class Sent(Answer, frozen=True, kw_only=True):
    message_id: MessageId
    created_at: datetime


def decide(send: SendMessage, context: Context, view: View) -> Decision:
    message_id = send.message_id or MessageId(context.id(0))
    formatting = _formatting(send)
    message = view.new_message(message_id)
    if message.exists:
        return _again(send, formatting, message, context)
    open_chat(view, send.chat_id, context.actor)
    if send.reply_to_id is not None:
        target = view.message(send.reply_to_id)
        if not target.exists or target.chat_id != send.chat_id:
            raise NotFound("there is no such message to reply to in this chat")
    sent = MessageSent(
        message_id=message_id,
        chat_id=send.chat_id,
        sender_id=context.actor,
        content=send.content,
        formatting=formatting,
        reply_to_id=send.reply_to_id,
    )
    return Decision([sent], Sent(message_id=message_id, created_at=context.now))


def _again(
    send: SendMessage, formatting: Formatting, message: Message, context: Context
) -> Decision:
    """The same message sent again answers as at first (contract.md, section 2)."""
    same = (
        message.chat_id == send.chat_id
        and message.sender_id == context.actor
        and message.fingerprint == fingerprint(send.content, formatting, send.reply_to_id)
    )
    if not same:
        raise Conflict("this message_id is taken")
    message_id = send.message_id or MessageId("")
    return Decision(
        [],
        Sent(message_id=message_id, created_at=message.created_at),
        repeats=message.position,
    )


def _formatting(send: SendMessage) -> Formatting:
    if send.metadata is None or send.metadata.formatting is None:
        return {}
    styles = msgspec.structs.asdict(send.metadata.formatting)
    for style, ranges in styles.items():
        for start, end in ranges:
            if not start < end <= len(send.content):
                raise Invalid(
                    f"range [{start}, {end}] is empty or beyond the {len(send.content)} characters",
                    field=f"metadata.formatting.{style}",
                )
    return {
        style: [(start, end) for start, end in ranges] for style, ranges in styles.items() if ranges
    }
