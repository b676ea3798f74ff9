"""How far a message got, recipient by recipient: for its sender only."""

from typing import Literal
from uuid import UUID

import msgspec

from api.operations import Call, Operation
from api.queries.query import Query, Time, id_parameter, operation
from api.read_models import Snapshot
from domain.refusals import Forbidden, NotFound

# Nothing for who is not in the chat. Only for its sender the recipients are looked for; a
# message that went to nobody has one row without any.
RECIPIENTS = """
    SELECT
        m.sender_id,
        d.user_id,
        d.status,
        d.delivered_at,
        d.read_at
    FROM message_places AS place
    JOIN messages AS m ON m.id = place.id AND m.created_at = place.created_at
    JOIN chat_participants AS p ON p.chat_id = place.chat_id
    JOIN chats AS c ON c.id = place.chat_id
    LEFT JOIN message_delivery AS d
        ON d.message_id = CASE WHEN m.sender_id = %(caller)s THEN m.id END
    WHERE place.id = %(message_id)s
        AND p.user_id = %(caller)s
        AND p.left_at IS NULL
        AND NOT c.is_deleted
    ORDER BY d.user_id
"""


class Recipient(msgspec.Struct, frozen=True):
    user_id: UUID
    status: Literal["pending", "delivered", "read"]
    delivered_at: Time | None
    read_at: Time | None


class MessageDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """`delivered` counts those delivered or read."""

    recipients: int
    delivered: int
    read: int
    items: list[Recipient]


async def delivery(call: Call, snapshot: Snapshot) -> MessageDelivery:
    caller = call.caller.user_id
    arguments = {"message_id": call.inbound.id("message_id"), "caller": caller}
    rows = await snapshot.rows(RECIPIENTS, arguments)
    if not rows:
        raise NotFound("there is no such message")
    if {str(row.pop("sender_id")) for row in rows} != {caller}:
        raise Forbidden("only its sender may see how far a message got")
    items = [Recipient(**row) for row in rows if row["user_id"] is not None]
    return MessageDelivery(
        recipients=len(items),
        delivered=sum(item.status != "pending" for item in items),
        read=sum(item.status == "read" for item in items),
        items=items,
    )


OPERATIONS: tuple[Operation, ...] = (
    operation(
        Query(
            "/v1/messages/{message_id:str}/delivery",
            "delivery",
            "To whom a message of the caller's was delivered, and who has read it",
            delivery,
            ("chats", "delivery", "messages"),
            MessageDelivery,
            (id_parameter("message_id", "A message that the caller sent."),),
            (NotFound, Forbidden),
        )
    ),
)
