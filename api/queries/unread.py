"""What the caller has not read yet: a count for each chat, and their sum."""

from uuid import UUID

import msgspec

from api.operations import Call, Operation
from api.queries.query import Query, operation
from api.read_models import Snapshot

COUNTS = """
    SELECT
        chat_id,
        count
    FROM unread_counts
    WHERE user_id = %(caller)s
    ORDER BY chat_id
"""


class UnreadChat(msgspec.Struct, frozen=True):
    chat_id: UUID
    count: int


class Unread(msgspec.Struct, frozen=True, kw_only=True):
    """`chats` have something unread, `messages` in all."""

    chats: int
    messages: int
    items: list[UnreadChat]


async def unread(call: Call, snapshot: Snapshot) -> Unread:
    return await unread_of(call.caller.user_id, snapshot)


async def unread_of(caller: str, snapshot: Snapshot) -> Unread:
    rows = await snapshot.rows(COUNTS, {"caller": caller})
    items = [UnreadChat(**row) for row in rows]
    return Unread(chats=len(items), messages=sum(item.count for item in items), items=items)


OPERATIONS: tuple[Operation, ...] = (
    operation(
        Query(
            "/v1/unread",
            "unread",
            "What the caller has not read",
            unread,
            ("unread",),
            Unread,
            (),
            (),
        )
    ),
)
