"""Search reads what it must: the index used and the rows looked at, in a table of some thousands.

Plans are the generic ones of the read pool. Words, chats and messages are made by SQL: every
message says "often", one in a thousand "seldom", and each of 100 chats has as much of each.
"""

import re
from typing import Any, LiteralString

import pytest
from psycopg import sql

from api.queries import search
from infra.database import Connection
from projections.search import BLOCK_BITS
from tests.infra.daemons import connected

MESSAGES = 50_000
CHATS = 100

FILL: LiteralString = """
    INSERT INTO message_search (message_id, chat_id, position, words)
    SELECT md5('message' || n)::uuid,
        md5('chat' || mod(n, 100))::uuid,
        n,
        to_tsvector('english', CASE WHEN mod(n / 100, 1000) = 7 THEN 'often seldom' ELSE 'often' END)
        || array_to_tsvector(ARRAY['chat:' || md5('chat' || mod(n, 100))::uuid] || array(
            SELECT 'block:' || bits || ':' || (n >> bits) FROM unnest(%s::int[]) AS bits
        ))
    FROM generate_series(1, 50000) AS n
"""

CHAT_IDS: LiteralString = """
    SELECT array_agg(md5('chat' || n)::uuid)::text
    FROM generate_series(1, %s) AS n
"""


async def filled(connection: Connection) -> None:
    await connection.execute(FILL, (list(BLOCK_BITS),))
    await connection.execute("VACUUM (ANALYZE) message_search")
    await connection.execute("SET plan_cache_mode = force_generic_plan")


async def wanted(connection: Connection, word: str, chat_count: int, messages: int) -> Any:
    cursor = await connection.execute(CHAT_IDS, (chat_count,))
    [(chats,)] = await cursor.fetchall()
    return search.Search(f"'{word}'", [word], [], "", chats, chat_count, messages, MESSAGES + 1)


async def run(connection: Connection, statement: LiteralString, arguments: dict[str, Any]) -> Any:
    """The plan with what it did."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    text: str = statement
    for number, name in enumerate(names, 1):
        text = text.replace(f"%({name})s", f"${number}")
    kinds = ["bigint" if isinstance(arguments[name], int) else "text" for name in names]
    await connection.execute(f"PREPARE plan ({', '.join(kinds)}) AS {text}".encode())
    values = sql.SQL(", ").join(sql.Literal(arguments[name]) for name in names)
    explain = sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE plan ({})").format(values)
    [[[explained]]] = await (await connection.execute(explain)).fetchall()
    await connection.execute("DEALLOCATE plan")
    return explained["Plan"]


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan] + [node for inner in plan.get("Plans", []) for node in nodes(inner)]


def read(plan: dict[str, Any]) -> tuple[set[str], float]:
    """The indexes used, and the rows of the table that were looked at."""
    found = nodes(plan)
    assert not [node for node in found if node["Node Type"] == "Seq Scan"]
    indexes = {node["Index Name"] for node in found if "Index Name" in node}
    rows = sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in found
        if node.get("Relation Name") == "message_search"
    )
    return indexes, rows


def arguments(of: Any, size: int) -> dict[str, Any]:
    blocks = search._blocks(MESSAGES + 1, size)
    return {
        "query": of.query,
        "scoped_query": of.scoped(blocks.lexemes),
        "chats": of.chats,
        "low": blocks.low,
        "before": MESSAGES + 1,
        "limit": search.CANDIDATES + 1,
    }


@pytest.mark.parametrize(
    ("word", "chat_count", "size", "most"),
    [
        # Of a frequent word, only what is in the first blocks: 16 thousand positions at most,
        ("often", 50, search.FIRST_POSITIONS, 2 * search.FIRST_POSITIONS),
        # and with few chats in the query, only what is in these.
        ("often", 3, search.FIRST_POSITIONS, 2 * search.FIRST_POSITIONS * 3 / CHATS + 3),
        # Of a rare word, all there are: a hundred in all, and one a chat.
        ("seldom", 50, MESSAGES * 16, MESSAGES / 500),
        ("seldom", 1, MESSAGES * 16, MESSAGES / 500 / CHATS),
        ("never", 50, MESSAGES * 16, 0),
    ],
)
async def test_the_index_of_words_gives_only_matches_of_blocks_and_chats(
    database_url: str, word: str, chat_count: int, size: int, most: float
) -> None:
    async with connected(database_url) as connection:
        await filled(connection)
        of = await wanted(connection, word, chat_count, MESSAGES)
        assert not of.is_by_chat
        indexes, rows = read(await run(connection, search.MATCHES, arguments(of, size)))
    assert indexes == {"idx_message_search_words"}
    assert rows <= most


async def test_many_chats_with_few_messages_are_looked_at_message_by_message(
    database_url: str,
) -> None:
    async with connected(database_url) as connection:
        await filled(connection)
        of = await wanted(connection, "often", 20, search.FEW_MESSAGES)
        assert of.is_by_chat
        plan = await run(connection, search.MATCHES_OF_CHATS, arguments(of, MESSAGES))
        indexes, rows = read(plan)
    assert indexes == {"idx_message_search_chat"}
    assert rows <= search.FEW_MESSAGES


async def test_the_places_of_matches_are_read_by_key(database_url: str) -> None:
    ids = "{0190b0a0-0000-7000-8000-000000000001}"
    async with connected(database_url) as connection:
        await filled(connection)
        statement = search.PLACES.replace("%(ids)s", "%(ids)s::uuid[]")
        places = {"ids": ids, "lexemes": "{often}", "beginnings": "{}", "limit": 10}
        indexes, _ = read(await run(connection, statement, places))  # type: ignore[arg-type]
    assert indexes == {"message_search_pkey"}
