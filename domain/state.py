"""Which state is folded from which category of streams: the one table for the executor."""

from collections.abc import Callable
from typing import Any, NamedTuple

from domain import attachment, chat, contact, message, receipt, user
from domain.event import Event, Place
from domain.ids import StreamId, category


class Aggregate(NamedTuple):
    """How to fold a category: `last_event_suffices` allows to read only a stream's end."""

    initial: Any
    evolve: Callable[[Any, Event, Place], Any]
    last_event_suffices: bool = False


AGGREGATES: dict[str, Aggregate] = {
    "user": Aggregate(user.User(), user.evolve),
    "chat": Aggregate(chat.Chat(), chat.evolve),
    "message": Aggregate(message.Message(), message.evolve),
    "attachment": Aggregate(attachment.Attachment(), attachment.evolve),
    "contact": Aggregate(contact.Contact(), contact.evolve, last_event_suffices=True),
    "receipt": Aggregate(receipt.Receipt(), receipt.evolve, last_event_suffices=True),
    "gateway": Aggregate(None, receipt.evolve_gateway, last_event_suffices=True),
}


def aggregate_of(stream: StreamId) -> Aggregate:
    return AGGREGATES[category(stream)]
