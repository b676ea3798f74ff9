"""The chat that is open, as the client knows it: its last messages, each with its reactions and how
far it has come with its recipients. No I/O, no clock.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from api.chat.wording import DELETED, Standing

MAX_MESSAGES = 1_000

Json = dict[str, Any]

RANKS: dict[Standing, int] = {"sent": 0, "delivered": 1, "read": 2}


@dataclass(kw_only=True)
class Message:
    """`standing` is of its recipients, on one's own only; `reactions` who reacted, by emoji."""

    id: str
    number: int
    position: int
    at: datetime
    sender_id: str | None
    content: str
    system: Json | None = None
    reply_to: Json | None = None
    is_edited: bool = False
    is_deleted: bool = False
    reactions: dict[str, dict[str, None]] = field(default_factory=dict)
    standing: dict[str, Standing] = field(default_factory=dict)

    def mark(self, mark: Json) -> None:
        """A mark covers all up to a position, and never takes anything back."""
        known = self.standing.get(mark["user_id"])
        if known is None:
            return
        read_up_to = mark["read_up_to"] or 0
        reached: Standing = "sent"
        if self.position <= read_up_to:
            reached = "read"
        elif self.position <= mark["delivered_up_to"]:
            reached = "delivered"
        self.standing[mark["user_id"]] = max(known, reached, key=lambda one: RANKS[one])


@dataclass(kw_only=True)
class Conversation:
    """The chat that is open; `marked` is the last message that was said to be read."""

    chat_id: str
    members: set[str]
    messages: dict[str, Message] = field(default_factory=dict)
    last_number: int = 0
    marked: str | None = None

    def take(self, message: Message) -> None:
        self.messages[message.id] = message
        self.last_number = max(self.last_number, message.number)
        if len(self.messages) > MAX_MESSAGES:
            del self.messages[next(iter(self.messages))]

    def numbered(self, number: int) -> Message | None:
        return next((one for one in self.messages.values() if one.number == number), None)

    def newest_of_others(self, user_id: str) -> str | None:
        """Its id; what the system says is nobody's."""
        others = (
            one.id
            for one in reversed(self.messages.values())
            if one.sender_id not in (None, user_id)
        )
        return next(others, None)

    def requote(self, message_id: str, content: str) -> None:
        for message in self.messages.values():
            if message.reply_to and message.reply_to["id"] == message_id:
                message.reply_to = {**message.reply_to, "content": content}

    def erase(self, user_id: str) -> None:
        """All that somebody said."""
        for message in self.messages.values():
            if message.sender_id == user_id:
                message.content = DELETED
