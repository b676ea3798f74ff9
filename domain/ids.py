"""Identifiers: lowercase UUID strings, one NewType a noun, and the names of streams.

A stream is `CATEGORY-ID`; the category decides which state is folded from it.
"""

from hashlib import blake2b
from typing import NewType
from uuid import UUID

from msgspec import Meta

UserId = NewType("UserId", str)
ChatId = NewType("ChatId", str)
MessageId = NewType("MessageId", str)
AttachmentId = NewType("AttachmentId", str)
GatewayId = NewType("GatewayId", str)
StreamId = NewType("StreamId", str)

# The pattern alone would let a trailing newline through: `$` matches before it.
UUID_TEXT = Meta(
    pattern="^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    min_length=36,
    max_length=36,
)


def user_stream(user_id: UserId) -> StreamId:
    return StreamId(f"user-{user_id}")


def chat_stream(chat_id: ChatId) -> StreamId:
    return StreamId(f"chat-{chat_id}")


def direct_chat_id(one: UserId, other: UserId) -> ChatId:
    """Made from the pair, so that two processes that open it at once open the same chat.

    A UUIDv8 (RFC 9562, "custom"): no other chat may have one, else somebody could take a
    pair's id before them.
    """
    pair = " ".join(sorted((one, other)))
    digest = int.from_bytes(blake2b(pair.encode(), digest_size=16).digest())
    custom = digest & ~(0xF << 76) & ~(0b11 << 62) | 0x8 << 76 | 0b10 << 62
    return ChatId(str(UUID(int=custom)))


def is_direct_chat_id(chat_id: ChatId) -> bool:
    return UUID(chat_id).version == 8


def message_stream(message_id: MessageId) -> StreamId:
    return StreamId(f"message-{message_id}")


def attachment_stream(attachment_id: AttachmentId) -> StreamId:
    return StreamId(f"attachment-{attachment_id}")


def contact_stream(one: UserId, other: UserId) -> StreamId:
    """The same whoever is named first."""
    return StreamId("contact-{}-{}".format(*sorted((one, other))))


def receipt_stream(chat_id: ChatId, user_id: UserId) -> StreamId:
    """A user's delivered and read marks in one chat; a stream of its own, so nobody waits."""
    return StreamId(f"receipt-{chat_id}-{user_id}")


def gateway_stream(gateway_id: GatewayId) -> StreamId:
    """What one process found out of many users at once; nobody else writes to it."""
    return StreamId(f"gateway-{gateway_id}")


def category(stream: StreamId) -> str:
    return stream.partition("-")[0]
