"""What the stream reads stays on its indexes: as much as it asks for, however long the log is."""

import re
from typing import Any, LiteralString, NamedTuple

import pytest

from api.stream import presence, readings
from infra.database import Connection
from tests.api.test_plans import _fill, _nodes, _rows, _value
from tests.infra.daemons import connected

LENGTH = 30_000
PEOPLE_CHATS = 50

# Every hundredth event moves somebody in one of fifty chats; the rest are messages in them.
FILL: tuple[LiteralString, ...] = (
    """
    INSERT INTO event_log (
        position, event_id, stream, stream_version, type, schema_version, data, metadata,
        recorded_at
    )
    SELECT n, md5('event' || n)::uuid,
        CASE WHEN n % 100 = 0 THEN 'chat-' || c.id ELSE 'message-' || md5('message' || n)::uuid END,
        CASE WHEN n % 100 = 0 THEN n / 100 ELSE 1 END,
        CASE WHEN n % 100 = 0 THEN 'members_added' ELSE 'message_sent' END,
        1,
        json_build_object(
            'chat_id', c.id, 'user_ids', json_build_array(md5('user' || n % 7)::uuid), 'filler',
            repeat('x', 100)
        ),
        '{}',
        now()
    FROM generate_series(1, 30000) AS n, LATERAL (
        SELECT md5('chat' || n / 100 % 50)::uuid AS id
    ) AS c
    """,
    """
    INSERT INTO gateways (id, seen_at)
    SELECT md5('gateway' || n)::uuid, now()
    FROM generate_series(1, 20) AS n
    """,
    """
    INSERT INTO gateway_users (user_id, gateway_id)
    SELECT md5('user' || n)::uuid, md5('gateway' || n % 20 + 1)::uuid
    FROM generate_series(1, 20000) AS n
    """,
    """
    ANALYZE
    """,
)


class Run(NamedTuple):
    statement: LiteralString
    arguments: Any
    served_by: str
    most_rows_read: int


RANGE = {"after": LENGTH - 2_000, "up_to": LENGTH, "caller": "user1"}
RUNS = {
    "the moves of a user": Run(readings.MOVES_NAMING, RANGE, "event_log_moves", 20),
    "the moves in chats": Run(
        readings.MOVES_OF,
        {"streams": ["chat-chat1", "chat-chat2"], "up_to": LENGTH, "naming": None},
        "event_log_stream_version",
        2 * LENGTH // 100 // PEOPLE_CHATS,
    ),
    "what came after the read models": Run(
        readings.SINCE,
        {**RANGE, "after": LENGTH - 200, "chats": ["chat1"], "contacts": readings.CONTACT_TYPES},
        "event_log_pkey|event_log_messages",
        400,
    ),
    "what messages say now": Run(
        readings.MESSAGES_NOW,
        {"streams": ["message-message1", "message-message2"]},
        "event_log_stream_version",
        2,
    ),
    # With none uploaded at all, the index of uploads says so soonest.
    "the images of messages": Run(
        readings.ATTACHMENTS,
        {"streams": ["attachment-attachment1"]},
        "event_log_stream_version|event_log_uploads",
        1,
    ),
    "which messages are deleted": Run(
        readings.DELETED, {"streams": ["message-message1"]}, "event_log_stream_version", 1
    ),
    "a page of what was missed": Run(
        readings.PAGE,
        {**RANGE, "chats": ["chat1"], "contacts": readings.CONTACT_TYPES, "limit": 500},
        "event_log_pkey",
        2_000,
    ),
    # All 2,000 chats, as the caller is in a quarter of them.
    "a user's chats": Run(
        readings.CHATS, {"caller": "user1"}, "idx_participants_user_active", 520 + 2_000
    ),
    "a user's contacts, both ways": Run(
        readings.CONTACTS, {"caller": "user1"}, "contacts|.*contact.*", 2 * 8
    ),
    "what a user may not have": Run(
        readings.PENDING, {"caller": "user1"}, "idx_delivery.*|message_delivery.*", 20_500
    ),
    "whether a user is connected": Run(
        presence.IS_CONNECTED, ("user1", 12.0), "gateway_users_pkey", 25
    ),
}


async def test_what_the_stream_reads_is_what_it_asks_for(database_url: str) -> None:
    async with connected(database_url) as connection:
        await _fill(connection)
        for statement in FILL:
            await connection.execute(statement)
        for name, run in RUNS.items():
            nodes = [
                one for one in _nodes(await plan(connection, run)) if "Scan" in one["Node Type"]
            ]
            places = [one.get("Index Name") or one.get("Relation Name", "") for one in nodes]
            assert any(re.fullmatch(run.served_by, place) for place in places), f"{name}: {places}"
            read = sum(_rows(one) for one in nodes)
            assert read <= run.most_rows_read, f"{name} read {read}"


async def plan(connection: Connection, run: Run) -> dict[str, Any]:
    explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {run.statement}".encode()
    [[[explained]]] = await (await connection.execute(explain, named(run.arguments))).fetchall()
    found: dict[str, Any] = explained["Plan"]
    return found


def named(given: Any) -> Any:
    """The things of FILL have ids that are made of their names."""
    match given:
        case dict():
            return {key: named(value) for key, value in given.items()}
        case list() | tuple():
            return type(given)(named(value) for value in given)
        case str():
            return _value(given)
        case _:
            return given


@pytest.mark.parametrize("module", [readings, presence])
def test_every_statement_that_a_connection_costs_is_looked_at(module: Any) -> None:
    statements = {
        name
        for name, value in vars(module).items()
        if isinstance(value, str) and re.match(r"\s*SELECT\b", value) and "FROM" in value
    }
    looked_at = {run.statement for run in RUNS.values()}
    # Of a few rows in all; and what was dead, which one process looks at every few seconds.
    small = {"CHECKPOINTS", "OF_THE_DEAD", "STATUSES"}
    assert {name for name in statements if vars(module)[name] not in looked_at} <= small
