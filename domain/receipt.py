"""Receipts: how far a user's messages of one chat are delivered and read.

Marks are positions: everything in the chat up to the mark is delivered (read). They only
rise, and what is read is delivered. Each event states both marks, so the last event of a
stream alone is its state, however long the stream (`domain.state` reads no more).
Rules: data-model.md, entity 8; contract.md, "Read marks".
"""

from typing import ClassVar

import msgspec

from domain.event import Event, Place
from domain.ids import ChatId, StreamId, UserId, receipt_stream


class ReceiptEvent(Event, frozen=True, kw_only=True):
    chat_id: ChatId
    user_id: UserId
    delivered_up_to: int
    read_up_to: int

    @property
    def stream(self) -> StreamId:
        return receipt_stream(self.chat_id, self.user_id)


class MessagesDelivered(ReceiptEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "messages_delivered"


class MessagesRead(ReceiptEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "messages_read"


class Receipt(msgspec.Struct, frozen=True):
    delivered_up_to: int = 0
    read_up_to: int = 0


def evolve(receipt: Receipt, event: Event, place: Place) -> Receipt:
    assert isinstance(event, MessagesDelivered | MessagesRead), event
    return Receipt(event.delivered_up_to, event.read_up_to)
