"""Search in 1,000,000 messages by 8 readers: rare and frequent words, in few and in many chats.

The tables are filled by SQL, the same each time: words and chats follow Zipf's law, so the
first word is in half of the messages and the first chat has a twelfth of them. Readers share
one process and one pool, as those of an API process do. As in `queries`, the target is for a
steady rate; the rate of readers that ask again as soon as they have their answer shows what
two processors can do at most. Baseline of the same run: the same readers page through chats.
"""

import asyncio
from collections.abc import Iterator
from hashlib import md5
from itertools import cycle, pairwise
from time import perf_counter
from types import SimpleNamespace
from typing import Any, LiteralString, NamedTuple, cast
from urllib.parse import urlencode
from uuid import UUID

import psycopg

from api.http import Inbound
from api.operations import Call, Operation
from api.queries import messages, search
from api.read_models import ReadModels
from domain.ids import UserId
from infra import database, pipelined
from infra.bus import Bus
from infra.objects import Objects
from infra.tokens import Caller
from projections.search import BLOCK_BITS
from tests.api.served import settings
from tests.benchmarks import harness
from tests.benchmarks.harness import Report, Target, below, percentile
from tests.benchmarks.projecting import NO_NATS

MESSAGES = 1_000_000
QUICK_MESSAGES = 20_000
READERS = 8
PER_SECOND = 80.0  # of all readers together
SECONDS = 5.0
MOST_SECONDS = 2.0
QUICK_SECONDS = 0.5
WARM_UP_SECONDS = 1.0
TARGET = below(50.0)
WAIT_SECONDS = 5.0

UNIFORM: LiteralString = """
    CREATE FUNCTION pg_temp.uniform(number bigint, seed bigint) RETURNS float8
    LANGUAGE sql IMMUTABLE
    AS $$ SELECT ((hashint8extended(number, seed) & 1048575) + 0.5::float8) / 1048576 $$
"""

# Consonants alone, so that no stemmer knows them.
VOCABULARY: LiteralString = """
    CREATE TEMPORARY TABLE vocabulary AS
    SELECT
        number,
        translate(to_hex(mod(number * 7919, 1000003)), '0123456789abcdef', 'bcdfgklmnprstvwz') AS word
    FROM generate_series(1, 50000) AS number
"""

MADE: LiteralString = """
    CREATE TEMPORARY TABLE made AS
    SELECT
        n AS position,
        md5('message' || n)::uuid AS id,
        md5('chat' || floor(10000 ^ pg_temp.uniform(n, 1))::int)::uuid AS chat_id,
        string_agg(v.word, ' ' ORDER BY k) AS text,
        '2025-01-01T00:00:00Z'::timestamptz + n * interval '30 seconds' AS created_at
    FROM generate_series(1, %s) AS n, generate_series(1, 10) AS k, vocabulary AS v
    WHERE v.number = floor(50000 ^ pg_temp.uniform(n * 100 + k, 2))::int
    GROUP BY n
    ORDER BY n
"""

PARTITIONS: LiteralString = """
    DO $$
    BEGIN
        FOR month IN 0..11 LOOP
            EXECUTE format(
                'CREATE TABLE %I PARTITION OF messages FOR VALUES FROM (%L) TO (%L)',
                'messages_2025_' || lpad((month + 1)::text, 2, '0'),
                '2025-01-01T00:00:00Z'::timestamptz + month * interval '1 month',
                '2025-01-01T00:00:00Z'::timestamptz + (month + 1) * interval '1 month'
            );
        END LOOP;
    END $$
"""

FILL: tuple[LiteralString, ...] = (
    """
    INSERT INTO users (id, username, password_hash, display_name, created_at, updated_at)
    SELECT md5('user' || n)::uuid, 'user_' || n, 'x', 'User ' || n, now(), now()
    FROM generate_series(1, 5000) AS n
    """,
    """
    INSERT INTO chats (id, type, name, slug, created_at, updated_at)
    SELECT md5('chat' || n)::uuid, 'group', 'Chat', 'chat-' || n, now(), now()
    FROM generate_series(1, 10000) AS n
    """,
    # Others; then who asks: in the 500 with the most, in 500 with few, in 5, in the first one.
    """
    INSERT INTO chat_participants (chat_id, user_id, joined_at)
    SELECT md5('chat' || n)::uuid, md5('user' || 10 + (n * 7 + m) % 4990)::uuid, now()
    FROM generate_series(1, 10000) AS n, generate_series(1, 10) AS m
    UNION ALL
    SELECT md5('chat' || n)::uuid, md5('user1')::uuid, now()
    FROM generate_series(1, 500) AS n
    UNION ALL
    SELECT md5('chat' || n)::uuid, md5('user2')::uuid, now()
    FROM generate_series(9001, 9500) AS n
    UNION ALL
    SELECT md5('chat' || n)::uuid, md5('user3')::uuid, now()
    FROM generate_series(100, 104) AS n
    UNION ALL
    SELECT md5('chat1')::uuid, md5('user4')::uuid, now()
    """,
    """
    INSERT INTO messages (id, chat_id, sender_id, content, created_at, seq, position)
    SELECT id, chat_id, md5('user' || mod(position, 5000))::uuid, text, created_at, position, position
    FROM made
    """,
    """
    INSERT INTO message_places (id, chat_id, created_at, seq)
    SELECT id, chat_id, created_at, position
    FROM made
    """,
    """
    INSERT INTO chat_sequences (chat_id, last_seq, last_message_id)
    SELECT chat_id, count(*), (array_agg(id))[1]
    FROM made
    GROUP BY chat_id
    """,
    """
    INSERT INTO projection_checkpoints (projection, position, updated_at)
    SELECT projection, (SELECT count(*) FROM made), now()
    FROM unnest(ARRAY['users', 'chats', 'messages', 'delivery', 'reactions', 'search'])
        AS projection
    """,
)

# As the projection does it.
FILL_SEARCH: LiteralString = """
    INSERT INTO message_search (message_id, chat_id, position, words)
    SELECT id, chat_id, position, to_tsvector('pg_catalog.english', text) || array_to_tsvector(
        ARRAY['chat:' || chat_id, 'from:' || md5('user' || mod(position, 5000))::uuid]
        || array(SELECT 'block:' || bits || ':' || (position >> bits) FROM unnest(%s::int[]) AS bits)
    )
    FROM made
"""

INDEXES: LiteralString = """
    SELECT indexname, indexdef
    FROM pg_indexes
    WHERE schemaname = 'public' AND indexname LIKE 'idx_message_search_%'
"""

SIZES: LiteralString = """
    SELECT
        pg_size_pretty(pg_table_size('message_search')),
        pg_size_pretty(pg_relation_size('idx_message_search_words'))
"""

WORDS: LiteralString = """
    SELECT
        number,
        translate(to_hex(mod(number * 7919, 1000003)), '0123456789abcdef', 'bcdfgklmnprstvwz')
    FROM unnest(%s::int[]) AS number
"""

FIRST, FREQUENT, MEDIUM, RARE = 1, 10, 1_000, 30_000
EXAMPLES = 40  # different words of each kind, so that no page of the index is asked for alone


class Asker(NamedTuple):
    where: str
    user: int


ASKERS = (
    Asker("in 500 chats with two thirds of all messages", 1),
    Asker("in 500 chats with a 200th of all messages", 2),
    Asker("in 5 chats", 3),
    Asker("in 1 chat with a 12th of all messages", 4),
)


async def run(report: Report, *, is_quick: bool) -> None:
    seconds = QUICK_SECONDS if is_quick else SECONDS
    async with harness.postgres() as server:
        harness.note_server(report, server.url)
        url = harness.database(server, "search")
        began = perf_counter()
        _fill(report, url, QUICK_MESSAGES if is_quick else MESSAGES)
        report.note(f"filled within {perf_counter() - began:.0f} s")
        await measure(report, url, seconds)


async def measure(report: Report, url: str, seconds: float) -> None:
    async with (
        database.pool(url, name="bench", size=1) as log_pool,
        pipelined.pool(url, name="bench read", size=READERS) as pool,
        Bus(NO_NATS, name="bench") as bus,
        Objects(settings(url, NO_NATS)) as objects,
        ReadModels(pool, log_pool, bus, objects, wait_seconds=WAIT_SECONDS) as read_models,
    ):
        await _page(report, read_models, seconds)
        for kind, texts in _texts(url).items():
            for asker in ASKERS:
                requests = [_search(read_models, asker.user, text) for text in texts]
                what = f"{kind}, {asker.where}"
                await _measure(report, what, search.OPERATIONS[0], requests, seconds)
        await _page(report, read_models, seconds)


def _fill(report: Report, url: str, count: int) -> None:
    """Indexes come last, as in a rebuild."""
    with psycopg.connect(url, autocommit=True) as connection:
        indexes = connection.execute(INDEXES).fetchall()
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}".encode())
        for statement in (UNIFORM, VOCABULARY, "ANALYZE vocabulary", PARTITIONS):
            connection.execute(statement)
        connection.execute(MADE, (count,))
        for statement in FILL:
            connection.execute(statement)
        connection.execute(FILL_SEARCH, (list(BLOCK_BITS),))
        for _, definition in indexes:
            connection.execute(definition.encode())
        connection.execute("VACUUM (ANALYZE)")
        sizes = connection.execute(SIZES).fetchone()
    assert sizes is not None
    report.note(f"{count:,} messages: table {sizes[0]}, index of words {sizes[1]}")


def _texts(url: str) -> dict[str, list[str]]:
    with psycopg.connect(url) as connection:

        def words(first: int) -> list[str]:
            numbers = list(range(first, first + EXAMPLES))
            return [word for _, word in connection.execute(WORDS, (numbers,)).fetchall()]

        first = words(FIRST)[:1]
        frequent, medium, rare = words(FREQUENT), words(MEDIUM), words(RARE)
    return {
        "a word in half of the messages": first,
        "a frequent word": frequent,
        "a word of medium frequency": medium,
        "a rare word": rare,
        "two frequent words": [f"{one} {two}" for one, two in pairwise(frequent)],
        "a frequent and a rare word": [
            f"{one} {two}" for one, two in zip(frequent, rare, strict=True)
        ],
        "no such word": ["qqqq"],
    }


async def _page(report: Report, read_models: ReadModels, seconds: float) -> None:
    history = next(one for one in messages.OPERATIONS if one.name == "messages")
    request = _call(read_models, 4, {"chat_id": _id("chat1")}, limit="20")
    await _measure(report, "baseline: a page of a chat", history, [request], seconds, None)


def _search(read_models: ReadModels, user: int, text: str) -> Call:
    return _call(read_models, user, {}, q=text)


def _call(read_models: ReadModels, user: int, path: dict[str, str], **query: str) -> Call:
    """What a request comes to, once it is known who asks."""
    scope = {"headers": [], "path_params": path, "query_string": urlencode(query).encode()}
    parts = SimpleNamespace(read_models=read_models)
    return Call(cast(Any, parts), Inbound(cast(Any, scope), cast(Any, None)), _caller(user))


def _caller(user: int) -> Caller:
    return Caller(UserId(_id(f"user{user}")), "", 0)


def _id(name: str) -> str:
    """As the tables have it."""
    return str(UUID(md5(name.encode(), usedforsecurity=False).hexdigest()))


async def _measure(
    report: Report,
    what: str,
    operation: Operation,
    calls: list[Call],
    seconds: float,
    target: Target | None = TARGET,
) -> None:
    await _read(operation, calls, min(seconds, WARM_UP_SECONDS), every=0.0)
    steady = await _read(operation, calls, seconds, every=READERS / PER_SECOND)
    report.add(f"{what}: p99", percentile(steady, 0.99), "ms", target=target)
    most_seconds = min(seconds, MOST_SECONDS)
    most = await _read(operation, calls, most_seconds, every=0.0)
    report.note(
        f"{what}: p50 {percentile(steady, 0.5):.1f} ms, longest {max(steady):.0f} ms; back to "
        f"back {len(most) / most_seconds:,.0f}/s, p99 {percentile(most, 0.99):.0f} ms"
    )


async def _read(
    operation: Operation, calls: list[Call], seconds: float, *, every: float
) -> list[float]:
    """Milliseconds of each answer. Each reader asks once in `every` seconds, its time counting
    from when it was to ask; or at once again, if `every` is 0."""
    times: list[float] = []
    turns = cycle(calls)
    began = perf_counter()
    readers = (
        _reader(operation, turns, began + n * every / READERS, every, began + seconds, times)
        for n in range(READERS)
    )
    await asyncio.gather(*readers)
    return times


async def _reader(
    operation: Operation,
    calls: Iterator[Call],
    due: float,
    every: float,
    until: float,
    times: list[float],
) -> None:
    while due < until:
        await asyncio.sleep(max(0.0, due - perf_counter()))
        await operation.handle(next(calls))
        now = perf_counter()
        times.append(1e3 * (now - due))
        due = due + every if every else now
