"""Hot queries stay on their indexes, however much there is of what they do not ask for.

The tables hold some thousand rows over two years of partitions; plans are the generic ones
that the read pool uses. A scan of a whole table is allowed only where the table is small. The
hottest are run too: which index served them, and how many rows they read for what they show.
"""

import re
from collections.abc import Iterator
from datetime import date
from hashlib import md5
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import pytest
from psycopg import sql

from api.queries import (
    attachments,
    chats,
    contacts,
    delivery,
    messages,
    reactions,
    state,
    unread,
    users,
)
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
    # User 1 is in 500 chats, and chat 2000 has 300 members.
    """
    INSERT INTO chat_participants (chat_id, user_id, joined_at)
    SELECT md5('chat' || n)::uuid, md5('user' || (n * 7 + m) % 5000)::uuid, now()
    FROM generate_series(1, 2000) AS n, generate_series(1, 10) AS m
    UNION
    SELECT md5('chat' || n)::uuid, md5('user1')::uuid, now()
    FROM generate_series(1, 499) AS n
    UNION
    SELECT md5('chat2000')::uuid, md5('user' || n)::uuid, now()
    FROM generate_series(1, 300) AS n
    """,
    """
    INSERT INTO messages (id, chat_id, sender_id, content, created_at, seq, position)
    SELECT md5('message' || n)::uuid, md5('chat' || n % 500)::uuid, md5('user' || n % 5000)::uuid,
        'text', '2024-01-01T00:00:00Z'::timestamptz + n * interval '50 minutes', n / 500 + 1, n
    FROM generate_series(1, 20000) AS n
    """,
    # Most of what chat 2000 ever said, said in turn by its members, each answering the last.
    """
    INSERT INTO messages (
        id, chat_id, sender_id, content, reply_to_id, created_at, seq, position
    )
    SELECT md5('said' || n)::uuid, md5('chat2000')::uuid, md5('user' || n % 300 + 1)::uuid, 'text',
        md5('said' || n - 1)::uuid, '2024-01-01T00:00:00Z'::timestamptz + n * interval '1 minute',
        n, 100000 + n
    FROM generate_series(1, 30000) AS n
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
    WHERE chat_id <> md5('chat2000')::uuid
    """,
    """
    INSERT INTO message_delivery (message_id, user_id, chat_id, position, created_at)
    SELECT id, md5('user' || n)::uuid, chat_id, position, created_at
    FROM messages, generate_series(1, 300) AS n
    WHERE chat_id = md5('chat2000')::uuid
        AND seq > 29800
        AND sender_id <> md5('user' || n)::uuid
    """,
    """
    INSERT INTO message_reactions (message_id, user_id, emoji, created_at)
    SELECT id, md5('user' || n)::uuid, 'emoji' || n % 3, created_at
    FROM messages, generate_series(1, 6) AS n
    WHERE seq % 10 = 0
    """,
    """
    INSERT INTO attachments (
        id, message_id, file_name, file_type, file_size, storage_key, thumbnail_key, url,
        thumbnail_url, width, height, created_at, chat_id, sender_id, medium_key, ordinal
    )
    SELECT md5('image' || id || n)::uuid, id, 'cat.png', 'image/png', 1, 'key', 'key', 'url',
        'url', 1, 1, created_at, chat_id, sender_id, 'key', n
    FROM messages, generate_series(0, 1) AS n
    WHERE seq % 10 = 0
    """,
    """
    INSERT INTO contacts (user_id, contact_id, status, requested_by, created_at)
    SELECT md5('user' || n)::uuid, md5('user' || (n + m) % 5000)::uuid, 'accepted',
        md5('user' || n)::uuid, now()
    FROM generate_series(1, 5000) AS n, generate_series(1, 8) AS m
    WHERE (n + m) % 5000 > 0
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
    "where a chat is": chats.TORN,
    "membership": messages.MEMBERSHIP,
    "where a page before is": messages.SPAN_BEFORE,
    "messages before": messages.BEFORE,
    "where a page after is": messages.SPAN_AFTER,
    "messages after": messages.AFTER,
    "where messages by id are": messages.SPAN_OF_IDS,
    "messages by id": messages.BY_ID,
    "what was replied to long ago": messages.OLDER,
    "a message's recipients": delivery.RECIPIENTS,
    "a message's reactions": reactions.GROUPED,
    "messages' attachments": attachments.OF_MESSAGES,
    "an attachment": attachments.ONE,
    "contacts": contacts.MINE,
    "where a state is": state.TORN,
    "unread counts": unread.COUNTS,
}
OF_FEW_MONTHS = (
    "a page of a chat with most messages of all",
    "a page after a place",
    "the last messages of 50 chats",
    "what was replied to long ago",
)


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


class Run(NamedTuple):
    """A query of somebody's, the index that has to serve it, and how much it may read."""

    query: LiteralString
    arguments: dict[str, str]
    served_by: str
    most_rows_read: int
    beforehand: LiteralString | None = None


BUSY = {"caller": "user1"}
PAGE = {"before": "infinity", "before_id": "ffffffff-ffff-ffff-ffff-ffffffffffff"}
LAST_IDS = "{" + ",".join(f"message{n}" for n in range(1, 51)) + "}"
RUNS = {
    # A page and one more: each with who said it, its chat and its reply (with who said that),
    # six reactions to every tenth, and the 299 recipients of one own.
    "a page of a chat with most messages of all": Run(
        messages.BEFORE,
        {**BUSY, **messages.SETTINGS, "chat_id": "chat2000", "seq": "30001", "limit": "51"},
        "messages_.*chat_id_seq_idx",
        51 * 5 + 6 * 6 + 2 * 299 + 2,
        messages.SPAN_BEFORE,
    ),
    "a page after a place": Run(
        messages.AFTER,
        {**BUSY, **messages.SETTINGS, "chat_id": "chat2000", "seq": "15000", "limit": "51"},
        "messages_.*chat_id_seq_idx",
        51 * 5 + 6 * 6 + 2 * 299 + 2,
        messages.SPAN_AFTER,
    ),
    "where a page of a chat is": Run(
        messages.SPAN_BEFORE,
        {**messages.SETTINGS, "chat_id": "chat2000", "seq": "30001", "limit": "51"},
        "idx_message_places_page",
        51,
    ),
    "where a page after a place is": Run(
        messages.SPAN_AFTER,
        {**messages.SETTINGS, "chat_id": "chat2000", "seq": "15000", "limit": "51"},
        "idx_message_places_page",
        51,
    ),
    # Of all 500 the participant and the chat, of a page also the count and the last message.
    "the chats of a user in 500": Run(
        chats.MINE,
        {**BUSY, **PAGE, "limit": "51"},
        "idx_participants_user_active",
        2 * 520 + 51 * 2,
    ),
    # At worst all chats of the caller are looked at once, to know which of them they may see.
    "the last messages of 50 chats": Run(
        messages.BY_ID,
        {**BUSY, **messages.SETTINGS, "ids": LAST_IDS},
        "message_places_pkey",
        50 * 6 + 500,
        messages.SPAN_OF_IDS,
    ),
    "where the last messages of 50 chats are": Run(
        messages.SPAN_OF_IDS,
        {**messages.SETTINGS, "ids": LAST_IDS},
        "message_places_pkey",
        50,
    ),
    "what was replied to long ago": Run(
        messages.OLDER,
        {**messages.SETTINGS, "ids": LAST_IDS},
        "message_places_pkey",
        50 * 3,
        messages.SPAN_OF_IDS,
    ),
    "what a user in 500 chats has not read": Run(unread.COUNTS, BUSY, "unread_counts_pkey", 520),
    "the delivery of a message in a group of 300": Run(
        delivery.RECIPIENTS,
        {"caller": "user1", "message_id": "said30000"},
        "message_delivery_pkey",
        299 + 4,
    ),
    "a user's contacts": Run(
        contacts.MINE,
        {**BUSY, **PAGE, "statuses": "{accepted,pending,blocked}", "limit": "501"},
        "contacts_pkey|idx_contacts_user_status",
        2 * 8,
    ),
    "the reactions to a message": Run(
        reactions.GROUPED,
        {"caller": "user1", "message_id": "said30000"},
        "message_reactions_pkey",
        6 + 3,
    ),
    "users by a prefix that all of them bear": Run(
        users.BY_PREFIX,
        {**BUSY, "low": "user", "high": "user\U0010ffff", "limit": "20"},
        "idx_users_username_prefix",
        20 + 40 + 60 + 2,
    ),
}


async def test_the_hottest_queries_read_little_more_than_they_show(database_url: str) -> None:
    async with connected(database_url) as connection:
        await _fill(connection)
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        for name, run in RUNS.items():
            plan = await _run(connection, run)
            read = {
                _scan(node): _rows(node) for node in _nodes(plan) if "Scan" in node["Node Type"]
            }
            read = {scan: rows for scan, rows in read.items() if rows}
            assert plan["Actual Rows"] > 0, name
            assert any(re.match(run.served_by, scan) for scan in read), f"{name} read {read}"
            assert sum(read.values()) <= run.most_rows_read, f"{name} read {read}"


async def _run(connection: Connection, run: Run) -> dict[str, Any]:
    """What it took, as the read pool would run it."""
    statement, names = _numbered(run.query)
    arguments = {name: _value(given) for name, given in run.arguments.items()}
    async with connection.transaction():
        if run.beforehand is not None:
            await connection.execute(run.beforehand, arguments)
        await connection.execute(f"PREPARE hot AS {statement}".encode())
        plan = await _explained(connection, [arguments[name] for name in names])
        await connection.execute("DEALLOCATE hot")
    return plan


async def _explained(connection: Connection, arguments: list[str]) -> dict[str, Any]:
    values = [sql.Literal(value) for value in arguments]
    explain = sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE hot ({})")
    cursor = await connection.execute(explain.format(sql.SQL(", ").join(values)))
    [[[explained]]] = await cursor.fetchall()
    plan: dict[str, Any] = explained["Plan"]
    return plan


def _value(given: str) -> str:
    """The things of FILL have ids that are made of their names."""
    return re.sub(
        r"\b(?:user|chat|message|said)\d+\b",
        lambda match: str(UUID(md5(match[0].encode()).hexdigest())),
        given,
    )


def _scan(node: dict[str, Any]) -> str:
    """Two scans of one index are told apart by what they are for."""
    place = node.get("Index Name") or node.get("Relation Name") or node["Node Type"]
    return f"{place} as {node.get('Alias')}"


def _is_of_messages(node: dict[str, Any]) -> bool:
    return re.fullmatch(r"messages_\d{4}_\d{2}", node.get("Relation Name", "")) is not None


def _rows(node: dict[str, Any]) -> int:
    """Also those that were read in vain; each once, where one scan is of another."""
    if node["Node Type"] in ("Bitmap Index Scan", "Subquery Scan", "CTE Scan"):
        return 0
    each: float = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
    return int(each * node["Actual Loops"])


async def test_a_page_is_cut_before_anything_is_joined_to_it(database_url: str) -> None:
    async with connected(database_url) as connection:
        await _fill(connection)
        for query in (messages.BEFORE, messages.AFTER):
            plan = await _plan(connection, query)
            limits = [node for node in _nodes(plan) if node["Node Type"] == "Limit"]
            scanned = {
                re.sub(r"_\d{4}_\d{2}$", "", node["Relation Name"])
                for node in _nodes(limits[0])
                if "Relation Name" in node
            }
            # The latter two say whether the caller may see it at all.
            assert scanned <= {"messages", "chat_participants", "chats"}


async def test_a_page_looks_into_no_month_but_its_own(database_url: str) -> None:
    """However many there are: the rest is left out before the statement starts."""
    async with connected(database_url) as connection:
        await _fill(connection)
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        for name in OF_FEW_MONTHS:
            plan = await _run(connection, RUNS[name])
            months = {node["Relation Name"] for node in _nodes(plan) if _is_of_messages(node)}
            assert 1 <= len(months) <= 2 < len(MONTHS), f"{name} looked into {months}"


def test_the_planner_knows_the_longest_page() -> None:
    for query in (messages.BEFORE, messages.AFTER):
        assert f"LIMIT {messages.MAX_LIMIT + 1}\n" in query


async def _fill(connection: Connection) -> None:
    async with connection.transaction():
        await partitions.Known().ensure(connection, "messages", MONTHS)
    for statement in FILL:
        await connection.execute(statement)


async def _sizes(connection: Connection) -> dict[str, float]:
    cursor = await connection.execute("SELECT relname, reltuples FROM pg_class")
    return dict(await cursor.fetchall())


async def _plan(connection: Connection, query: str) -> dict[str, Any]:
    explain = "EXPLAIN (GENERIC_PLAN, FORMAT JSON) " + _numbered(query)[0]
    [[[explained]]] = await (await connection.execute(explain.encode())).fetchall()
    plan: dict[str, Any] = explained["Plan"]
    return plan


def _numbered(query: str) -> tuple[str, list[str]]:
    """With PostgreSQL's own parameters, and the names that they had."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", query)))
    for number, parameter in enumerate(names, 1):
        query = query.replace(f"%({parameter})s", f"${number}")
    return query, names


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from _nodes(inner)


def _scanned(plan: dict[str, Any]) -> Iterator[str]:
    for node in _nodes(plan):
        if node["Node Type"] == "Seq Scan":
            yield node["Relation Name"]


@pytest.mark.parametrize(
    "module", [users, chats, contacts, messages, delivery, reactions, unread, state]
)
def test_every_statement_of_the_queries_is_looked_at(module: Any) -> None:
    statements = {
        value
        for value in vars(module).values()
        if isinstance(value, str) and re.match(r"\s*(SELECT|WITH)\b", value)
    }
    unseen = {one for one in statements if "FROM" in one} - set(QUERIES.values())
    assert [one for one in unseen if not any(one in whole for whole in QUERIES.values())] == []
