"""record-deliveries: what clients on the stream said they have, of many users at once.

No client sends it: a gateway does, at most once a chat and flush. It alone writes its stream, so
it never waits for anybody. Marks of what is delivered already change nothing.
"""

from commands.command import Command, Context, Decision, View
from domain.ids import ChatId, GatewayId
from domain.receipt import DeliveriesRecorded, DeliveryMark


class RecordDeliveries(Command, frozen=True, kw_only=True):
    gateway_id: GatewayId
    marks: dict[ChatId, list[DeliveryMark]]


def decide(record: RecordDeliveries, context: Context, view: View) -> Decision:
    view.own_gateway(record.gateway_id)
    return Decision(
        [
            DeliveriesRecorded(gateway_id=record.gateway_id, chat_id=chat_id, marks=marks)
            for chat_id, marks in record.marks.items()
        ]
    )
