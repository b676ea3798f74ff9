"""A message: folded from the stream `message-ID`, one a message, so a busy chat is no hot spot.

The text is sealed with the sender's content key. What a system message says is kept as
data (`kind`, who, whom), never as a sentence with names in it: clients show it with the
names of the day, and a deleted account leaves no name behind.
Rules: data-model.md, entity 5.
"""

from datetime import UTC, datetime
from hashlib import blake2b
from typing import ClassVar, Literal, assert_never

import msgspec

from domain.event import Event, MessageText, Place
from domain.ids import ChatId, MessageId, StreamId, UserId, message_stream

MAX_CONTENT_CHARACTERS = 10_000

SystemKind = Literal[
    "members_added", "member_removed", "member_left", "group_renamed", "ownership_transferred"
]

# Half-open character ranges [start, end) by style (data-model.md, "Metadata Format").
Formatting = dict[str, list[tuple[int, int]]]


class MessageEvent(Event, frozen=True, kw_only=True):
    message_id: MessageId

    @property
    def stream(self) -> StreamId:
        return message_stream(self.message_id)


class MessageSent(MessageEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "message_sent"
    chat_id: ChatId
    sender_id: UserId
    content: MessageText
    formatting: Formatting = msgspec.field(default_factory=dict)
    reply_to_id: MessageId | None = None


class SystemMessageSent(MessageEvent, frozen=True, kw_only=True):
    """`name` is the group's new name when it was renamed."""

    type: ClassVar[str] = "system_message_sent"
    chat_id: ChatId
    kind: SystemKind
    actor_id: UserId
    user_ids: list[UserId] = msgspec.field(default_factory=list)
    name: str | None = None


class Message(msgspec.Struct, frozen=True):
    exists: bool = False
    chat_id: ChatId = ChatId("")
    sender_id: UserId | None = None
    position: int = 0
    created_at: datetime = datetime.min.replace(tzinfo=UTC)
    fingerprint: bytes = b""


def fingerprint(
    content: str | None, formatting: Formatting, reply_to_id: MessageId | None
) -> bytes:
    """A digest of what was said: tells a repeated send from another one, keeps no text."""
    return blake2b(
        msgspec.json.encode((content, sorted(formatting.items()), reply_to_id)), digest_size=16
    ).digest()


def evolve(message: Message, event: Event, place: Place) -> Message:
    assert isinstance(event, MessageSent | SystemMessageSent), event
    match event:
        case MessageSent():
            return Message(
                True,
                event.chat_id,
                event.sender_id,
                place.position,
                place.recorded_at,
                fingerprint(event.content, event.formatting, event.reply_to_id),
            )
        case SystemMessageSent():
            return Message(True, event.chat_id, None, place.position, place.recorded_at)
        case _:
            assert_never(event)
