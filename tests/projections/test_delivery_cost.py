"""A mark costs what it changes, however much its user was delivered before and never read."""

from typing import Any, LiteralString

import msgspec

from projections.delivery import UPDATE_DELIVERY
from tests.commands.history import chat_id, user_id
from tests.infra.daemons import connected

USERS = 100
DELIVERED = 300
PENDING = 3

FILL: LiteralString = """
    INSERT INTO message_delivery (
        message_id, user_id, status, delivered_at, created_at, chat_id, position
    )
    SELECT
        md5('message' || n)::uuid,
        u.id::uuid,
        CASE WHEN n <= %(delivered)s THEN 'delivered' ELSE 'pending' END,
        CASE WHEN n <= %(delivered)s THEN now() END,
        now(),
        %(chat)s,
        n
    FROM generate_series(1, %(delivered)s + %(pending)s) AS n
    CROSS JOIN unnest(%(users)s::text[]) AS u (id)
"""

# As the planner does by itself where the table is large.
BY_INDEX: LiteralString = """
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off
"""

EXPLAIN: LiteralString = "EXPLAIN (ANALYZE, FORMAT JSON)"


async def test_a_mark_that_only_delivers_looks_at_nothing_that_is_delivered_already(
    database_url: str,
) -> None:
    found = await _updating(database_url, read_at=None)
    assert found["Index Name"] == "idx_delivery_user_open"
    assert found["Actual Rows"] == PENDING
    assert found.get("Rows Removed by Filter", 0) == 0


async def test_a_mark_that_reads_finds_what_is_delivered_too(database_url: str) -> None:
    found = await _updating(database_url, read_at="2026-01-02T00:00:00Z")
    assert found["Actual Rows"] == DELIVERED + PENDING


async def _updating(database_url: str, *, read_at: str | None) -> dict[str, Any]:
    """How the rows were found that a mark over all of them changes."""
    end = DELIVERED + PENDING
    mark = {
        "chat_id": chat_id(1),
        "user_id": user_id(1),
        "after": 0,
        "up_to": end,
        "delivered_at": "2026-01-01T00:00:00Z",
        "read_at": read_at,
        "batch_begin": end,
    }
    async with connected(database_url) as connection:
        await connection.execute(
            FILL,
            {
                "users": [user_id(number) for number in range(1, USERS + 1)],
                "chat": chat_id(1),
                "delivered": DELIVERED,
                "pending": PENDING,
            },
        )
        await connection.execute("ANALYZE message_delivery")
        await connection.execute(BY_INDEX)
        cursor = await connection.execute(
            EXPLAIN + UPDATE_DELIVERY, {"marks": msgspec.json.encode([mark]).decode()}
        )
        row: Any = await cursor.fetchone()
    return next(
        node
        for node in _nodes(row[0][0]["Plan"])
        if node.get("Alias") == "d" and "Scan" in node["Node Type"]
    )


def _nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(found for child in node.get("Plans", []) for found in _nodes(child))]
