"""Receipts: how far a user's messages of one chat are delivered and read.

Marks are positions: everything in the chat up to the mark is delivered (read). They only
rise, and what is read is delivered. Each event states both marks, so the last event of a
stream alone is its state, however long the stream (`domain.state` reads no more).
Rules: data-model.md, entity 8; contract.md, "Read marks".

What clients say on the stream comes by the hundred for one message, so a gateway records it for
many users at once, in a stream of its own: `DeliveriesRecorded`.
"""

from typing import ClassVar

import msgspec

from domain.event import Event, Place
from domain.ids import ChatId, GatewayId, StreamId, UserId, gateway_stream, receipt_stream


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


class DeliveryMark(msgspec.Struct, frozen=True, kw_only=True):
    """All of the chat in (`after`, `up_to`] was sent to the user, and is received."""

    user_id: UserId
    after: int
    up_to: int


class DeliveriesRecorded(Event, frozen=True, kw_only=True):
    """Of one chat, at most one mark a user."""

    type: ClassVar[str] = "deliveries_recorded"
    gateway_id: GatewayId
    chat_id: ChatId
    marks: list[DeliveryMark]

    @property
    def stream(self) -> StreamId:
        return gateway_stream(self.gateway_id)


class Receipt(msgspec.Struct, frozen=True):
    delivered_up_to: int = 0
    read_up_to: int = 0


def evolve(receipt: Receipt, event: Event, place: Place) -> Receipt:
    assert isinstance(event, MessagesDelivered | MessagesRead), event
    return Receipt(event.delivered_up_to, event.read_up_to)


def evolve_gateway(gateway: None, event: Event, place: Place) -> None:
    """Nothing is decided by what a gateway recorded before."""
    assert isinstance(event, DeliveriesRecorded), event
