"""Hot queries stay on their indexes, however much there is of what they do not ask for.

The tables hold some thousand rows over two years of partitions; plans are the generic ones
that the read pool uses. A scan of a whole table is allowed only where the table is small.
"""

import re
from collections.abc import Iterator
from datetime import date
from typing import Any, LiteralString

import pytest

from api.queries import chats, delivery, messages, unread, users
from infra import partitions
from infra.database import Connection
from tests.infra.daemons import connected

SMALL_ROWS = 100
MONTHS = frozenset(date(year, month, 1) for year in (2024, 2025) for month in range(1, 13))

FILL = (
    """
    INSERT INTO users (id, username, password_hash, display_name, created_at, updated_at)
    SELECT md5('user' || n)::uuid, 'user_' || n, 'x', 'User ' || n, now(), now()
    FROM generate_series(1, 5000) AS n
    """,
    """
    INSERT INTO chats (id, type, name, slug, created_at, updated_at)
    SELECT md5('chat' || n)::uuid, 'group', 'Chat', 'chat-' || n, now(), now()
    FROM generate_series(1, 2000) AS n
    """,
    """
    INSERT INTO chat_participants (chat_id, user_id, joined_at)
    SELECT md5('chat' || n)::uuid, md5('user' || (n * 7 + m) % 5000)::uuid, now()
    FROM generate_series(1, 2000) AS n, generate_series(1, 10) AS m
    """,
    """
    INSERT INTO messages (id, chat_id, sender_id, content, created_at, seq, position)
    SELECT md5('message' || n)::uuid, md5('chat' || n % 500)::uuid, md5('user' || n % 5000)::uuid,
        'text', '2024-01-01T00:00:00Z'::timestamptz + n * interval '50 minutes', n / 500 + 1, n
    FROM generate_series(1, 20000) AS n
    """,
    """
    INSERT INTO message_places (id, chat_id, created_at, seq)
    SELECT id, chat_id, created_at, seq
    FROM messages
    """,
    """
    INSERT INTO chat_sequences (chat_id, last_seq, last_message_id)
    SELECT chat_id, max(seq), (array_agg(id ORDER BY seq DESC))[1]
    FROM messages
    GROUP BY chat_id
    """,
    """
    INSERT INTO message_delivery (message_id, user_id, chat_id, position, created_at)
    SELECT id, md5('user' || n)::uuid, chat_id, position, created_at
    FROM messages, generate_series(1, 3) AS n
    """,
    """
    INSERT INTO unread_counts (user_id, chat_id, count)
    SELECT user_id, chat_id, 1
    FROM chat_participants
    """,
    """
    ANALYZE
    """,
)

QUERIES: dict[str, LiteralString] = {
    "a user": users.ONE,
    "users by prefix": users.BY_PREFIX,
    "a user's chats": chats.MINE,
    "a chat": chats.ONE,
    "participants": chats.PARTICIPANTS,
    "membership": messages.MEMBERSHIP,
    "messages before": messages.BEFORE,
    "messages after": messages.AFTER,
    "messages by id": messages.BY_ID,
    "how far messages got": messages.DELIVERY,
    "a message's sender": delivery.SENDER,
    "a message's recipients": delivery.RECIPIENTS,
    "unread counts": unread.COUNTS,
}


async def test_every_hot_query_uses_indexes(database_url: str) -> None:
    async with connected(database_url) as connection:
        await _fill(connection)
        sizes = await _sizes(connection)
        scans = {
            name: sorted(
                table
                for table in _scanned(await _plan(connection, query))
                if sizes.get(table, 0) > SMALL_ROWS
            )
            for name, query in QUERIES.items()
        }
    assert scans == {name: [] for name in QUERIES}


async def test_a_page_is_cut_before_anything_is_joined_to_it(database_url: str) -> None:
    async with connected(database_url) as connection:
        await _fill(connection)
        for query in (messages.BEFORE, messages.AFTER):
            [limit] = [
                node
                for node in _nodes(await _plan(connection, query))
                if node["Node Type"] == "Limit"
            ]
            assert {node["Node Type"] for node in _nodes(limit)} <= {
                "Limit",
                "Merge Append",
                "Index Scan",
            }


async def _fill(connection: Connection) -> None:
    async with connection.transaction():
        await partitions.Known().ensure(connection, "messages", MONTHS)
    for statement in FILL:
        await connection.execute(statement)


async def _sizes(connection: Connection) -> dict[str, float]:
    cursor = await connection.execute("SELECT relname, reltuples FROM pg_class")
    return dict(await cursor.fetchall())


async def _plan(connection: Connection, query: str) -> dict[str, Any]:
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", query)))
    for number, parameter in enumerate(names, 1):
        query = query.replace(f"%({parameter})s", f"${number}")
    explain = "EXPLAIN (GENERIC_PLAN, FORMAT JSON) " + query
    [[[explained]]] = await (await connection.execute(explain.encode())).fetchall()
    plan: dict[str, Any] = explained["Plan"]
    return plan


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from _nodes(inner)


def _scanned(plan: dict[str, Any]) -> Iterator[str]:
    for node in _nodes(plan):
        if node["Node Type"] == "Seq Scan":
            yield node["Relation Name"]


@pytest.mark.parametrize("module", [users, chats, messages, delivery, unread])
def test_every_statement_of_the_queries_is_looked_at(module: Any) -> None:
    statements = {
        value for value in vars(module).values() if isinstance(value, str) and "SELECT" in value
    }
    assert {one for one in statements if "FROM" in one} <= set(QUERIES.values())
