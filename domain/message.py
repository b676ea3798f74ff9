"""A message: folded from the stream `message-ID`, one a message, so a busy chat is no hot spot.

The text is sealed with the sender's content key. What a system message says is kept as
data (`kind`, who, whom), never as a sentence with names in it: clients show it with the
names of the day, and a deleted account leaves no name behind.
Rules: data-model.md, entity 5.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import ClassVar, Literal, assert_never

import msgspec

from domain.event import Event, MessageText, Place
from domain.ids import AttachmentId, ChatId, MessageId, StreamId, UserId, message_stream

MAX_CONTENT_CHARACTERS = 10_000

SystemKind = Literal[
    "members_added",
    "member_removed",
    "member_left",
    "group_renamed",
    "ownership_transferred",
    "admin_appointed",
    "admin_dismissed",
]

# Half-open character ranges [start, end) by style (data-model.md, "Metadata Format").
Formatting = dict[str, list[tuple[int, int]]]


class MessageEvent(Event, frozen=True, kw_only=True):
    message_id: MessageId

    @property
    def stream(self) -> StreamId:
        return message_stream(self.message_id)


class MessageSent(MessageEvent, frozen=True, kw_only=True):
    """Version 2 has `attachment_ids`, in the order to be shown in."""

    type: ClassVar[str] = "message_sent"
    version: ClassVar[int] = 2
    chat_id: ChatId
    sender_id: UserId
    content: MessageText
    formatting: Formatting = msgspec.field(default_factory=dict)
    reply_to_id: MessageId | None = None
    attachment_ids: list[AttachmentId] = msgspec.field(default_factory=list)


class SystemMessageSent(MessageEvent, frozen=True, kw_only=True):
    """`name` is the group's new name when it was renamed."""

    type: ClassVar[str] = "system_message_sent"
    chat_id: ChatId
    kind: SystemKind
    actor_id: UserId
    user_ids: list[UserId] = msgspec.field(default_factory=list)
    name: str | None = None


class MessageEdited(MessageEvent, frozen=True, kw_only=True):
    """The message as it reads from now on; what it was before stays in the log."""

    type: ClassVar[str] = "message_edited"
    chat_id: ChatId
    sender_id: UserId
    content: MessageText
    formatting: Formatting = msgspec.field(default_factory=dict)


class MessageDeleted(MessageEvent, frozen=True, kw_only=True):
    """`sent_position`: where the message entered the log, which is how others know it."""

    type: ClassVar[str] = "message_deleted"
    chat_id: ChatId
    by: UserId
    sent_position: int


class ReactionEvent(MessageEvent, frozen=True, kw_only=True):
    chat_id: ChatId
    user_id: UserId
    emoji: str


class ReactionAdded(ReactionEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "reaction_added"


class ReactionRemoved(ReactionEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "reaction_removed"


class Message(msgspec.Struct, frozen=True):
    """`fingerprint` is of what was sent, `shown` of what it reads now (`text_fingerprint`)."""

    exists: bool = False
    chat_id: ChatId = ChatId("")
    sender_id: UserId | None = None
    position: int = 0
    created_at: datetime = datetime.min.replace(tzinfo=UTC)
    fingerprint: bytes = b""
    shown: bytes = b""
    is_deleted: bool = False
    reactions: frozenset[tuple[UserId, str]] = frozenset()
    attachment_ids: tuple[AttachmentId, ...] = ()


def fingerprint(
    content: str | None,
    formatting: Formatting,
    reply_to_id: MessageId | None,
    attachment_ids: Sequence[AttachmentId] = (),
) -> bytes:
    """A digest of what was said: tells a repeated send from another one, keeps no text."""
    said = (content, sorted(formatting.items()), reply_to_id, attachment_ids)
    return blake2b(msgspec.json.encode(said), digest_size=16).digest()


def text_fingerprint(content: str | None, formatting: Formatting) -> bytes:
    """As `fingerprint`, of what an edit can change."""
    return fingerprint(content, formatting, None)


def evolve(message: Message, event: Event, place: Place) -> Message:
    match event:
        case MessageEdited():
            shown = text_fingerprint(event.content, event.formatting)
            return msgspec.structs.replace(message, shown=shown)
        case MessageDeleted():
            return msgspec.structs.replace(message, is_deleted=True, reactions=frozenset())
        case ReactionAdded():
            reactions = message.reactions | {(event.user_id, event.emoji)}
            return msgspec.structs.replace(message, reactions=reactions)
        case ReactionRemoved():
            reactions = message.reactions - {(event.user_id, event.emoji)}
            return msgspec.structs.replace(message, reactions=reactions)
        case _:
            return _sent(event, place)


def _sent(event: Event, place: Place) -> Message:
    assert isinstance(event, MessageSent | SystemMessageSent), event
    match event:
        case MessageSent():
            return Message(
                True,
                event.chat_id,
                event.sender_id,
                place.position,
                place.recorded_at,
                fingerprint(
                    event.content, event.formatting, event.reply_to_id, event.attachment_ids
                ),
                text_fingerprint(event.content, event.formatting),
                attachment_ids=tuple(event.attachment_ids),
            )
        case SystemMessageSent():
            return Message(True, event.chat_id, None, place.position, place.recorded_at)
        case _:
            assert_never(event)
