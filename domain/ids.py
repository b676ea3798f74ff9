"""Identifiers: lowercase UUID strings, one NewType a noun, and the names of streams.

A stream is `CATEGORY-ID`; the category decides which state is folded from it.
"""

from typing import NewType

from msgspec import Meta

UserId = NewType("UserId", str)
ChatId = NewType("ChatId", str)
MessageId = NewType("MessageId", str)
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


def message_stream(message_id: MessageId) -> StreamId:
    return StreamId(f"message-{message_id}")


def receipt_stream(chat_id: ChatId, user_id: UserId) -> StreamId:
    """A user's delivered and read marks in one chat; a stream of its own, so nobody waits."""
    return StreamId(f"receipt-{chat_id}-{user_id}")


def category(stream: StreamId) -> str:
    return stream.partition("-")[0]
