"""Who reacted to a message with which emoji: for the participants of its chat.

Not paged: a message has at most a group's members, with the few emoji that each may add.
"""

from uuid import UUID

import msgspec

from api.operations import Call, Operation
from api.queries.query import Query, id_parameter, operation
from api.read_models import Snapshot
from domain.refusals import NotFound

# In the order of first use; a row without an emoji where nobody has reacted yet.
GROUPED = """
    SELECT
        r.emoji,
        count(*) AS count,
        array_agg(r.user_id ORDER BY r.created_at, r.user_id) AS user_ids
    FROM message_places AS place
    JOIN chat_participants AS p ON p.chat_id = place.chat_id
    JOIN chats AS c ON c.id = place.chat_id
    LEFT JOIN message_reactions AS r ON r.message_id = place.id
    WHERE place.id = %(message_id)s
        AND p.user_id = %(caller)s
        AND p.left_at IS NULL
        AND NOT c.is_deleted
    GROUP BY r.emoji
    ORDER BY min(r.created_at), r.emoji
"""


class ReactionOf(msgspec.Struct, frozen=True, kw_only=True):
    """`user_ids` in the order in which they reacted."""

    emoji: str
    count: int
    user_ids: list[UUID]


class Reactions(msgspec.Struct, frozen=True):
    items: list[ReactionOf]


async def reactions(call: Call, snapshot: Snapshot) -> Reactions:
    arguments = {"message_id": call.inbound.id("message_id"), "caller": call.caller.user_id}
    rows = await snapshot.rows(GROUPED, arguments)
    if not rows:
        raise NotFound("there is no such message")
    return Reactions([ReactionOf(**row) for row in rows if row["emoji"] is not None])


OPERATIONS: tuple[Operation, ...] = (
    operation(
        Query(
            "/v1/messages/{message_id:str}/reactions",
            "reactions",
            "Who reacted to a message, by emoji",
            reactions,
            ("chats", "messages", "reactions"),
            Reactions,
            (id_parameter("message_id", "A message of a chat that the caller is in."),),
        )
    ),
)
