"""Queries by 8 readers at once, each on its own connection, against one API process.

The read models hold a million messages of two years; they are filled by SQL, as what is
measured only reads. Each of the readers is a user in 500 chats, one of them a group of 300.
`SECTIONS` is what they ask for, a section a kind of query; baselines of the same run, before
and after: GET /health/live, which is what the HTTP server alone costs, and GET /v1/users/me,
the smallest query there is. Targets are for a steady rate, where an answer's time is its own;
back to back, eight readers wait for each other, and the time says how many there are a second.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from hashlib import md5
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import psycopg

from domain.ids import UserId
from infra import database, partitions
from infra.embedded import nats
from infra.tokens import Caller, Tokens
from projections import NAMES
from tests.api import process
from tests.benchmarks import harness, readers
from tests.benchmarks.harness import Report, below
from tests.benchmarks.readers import Plan, Result
from tests.benchmarks.workload import TEXTS
from tests.infra.machines import SECRET

READERS = 8
PER_SECOND = 80.0  # of all readers together
STATES_PER_SECOND = 8.0
SECONDS = 20.0
QUICK_SECONDS = 2.0
WARM_UP_SECONDS = 2.0
TOKEN_SECONDS = 86_400

MESSAGES = 1_000_000
QUICK_MESSAGES = 20_000
USERS = 10_000
CHATS = 2_000  # of ten, and then one of 300
BUSY_CHATS = 500
GROUP_SIZE = 300
GROUP_SPEAKERS = 32
GROUP = CHATS
PATHS_A_READER = 100
MONTHS = frozenset(date(year, month, 1) for year in (2024, 2025) for month in range(1, 13))

FILL: tuple[LiteralString, ...] = (
    """
    INSERT INTO users (id, username, password_hash, display_name, created_at, updated_at)
    SELECT md5('user' || n)::uuid, 'user_' || n, 'x', 'User ' || n, '2024-01-01Z',
        '2024-01-01Z'
    FROM generate_series(1, %(users)s) AS n
    """,
    """
    INSERT INTO chat_participants (chat_id, user_id, joined_at)
    SELECT md5('chat' || n)::uuid, md5('user' || (n * 7 + m) %% %(users)s + 1)::uuid,
        '2024-01-01Z'::timestamptz
    FROM generate_series(1, %(chats)s - 1) AS n, generate_series(1, 10) AS m
    UNION
    SELECT md5('chat' || n)::uuid, md5('user' || m)::uuid, '2024-01-01Z'::timestamptz
    FROM generate_series(1, %(busy_chats)s - 1) AS n, generate_series(1, %(readers)s) AS m
    UNION
    SELECT md5('chat' || %(chats)s)::uuid, md5('user' || m)::uuid, '2024-01-01Z'::timestamptz
    FROM generate_series(1, %(group_size)s) AS m
    """,
    # One in ten into the group, by some of its members in turn, as elsewhere; readers among them.
    """
    CREATE TEMPORARY TABLE said AS
    SELECT
        n,
        n / %(messages)s::float8 AS share,
        CASE WHEN n %% 10 = 0 THEN %(chats)s ELSE n %% (%(chats)s - 1) + 1 END AS chat,
        CASE WHEN n %% 10 = 0 THEN n / 10 %% %(speakers)s + 1 ELSE n %% 83 + 1 END AS sender
    FROM generate_series(1, %(messages)s) AS n
    """,
    """
    INSERT INTO messages (
        id, chat_id, sender_id, content, reply_to_id, created_at, seq, position
    )
    SELECT
        md5('message' || n)::uuid,
        md5('chat' || chat)::uuid,
        md5('user' || sender)::uuid,
        (%(texts)s::text[])[n %% %(kinds)s + 1],
        CASE WHEN n %% 7 = 0
            THEN lag(md5('message' || n)::uuid) OVER (PARTITION BY chat ORDER BY n)
        END,
        '2024-01-01T00:00:00Z'::timestamptz + share * interval '730 days',
        row_number() OVER (PARTITION BY chat ORDER BY n),
        n
    FROM said
    """,
    """
    INSERT INTO message_places (id, chat_id, created_at, seq)
    SELECT id, chat_id, created_at, seq
    FROM messages
    """,
    """
    INSERT INTO chat_sequences (chat_id, last_seq, last_message_id)
    SELECT DISTINCT ON (chat_id) chat_id, seq, id
    FROM messages
    ORDER BY chat_id, seq DESC
    """,
    """
    INSERT INTO chats (
        id, type, name, slug, created_at, updated_at, last_message_at
    )
    SELECT md5('chat' || n)::uuid, 'group', 'Chat ' || n, 'chat-' || n, '2024-01-01Z'::timestamptz,
        '2024-01-01Z'::timestamptz, m.created_at
    FROM generate_series(1, %(chats)s) AS n
    LEFT JOIN chat_sequences AS s ON s.chat_id = md5('chat' || n)::uuid
    LEFT JOIN message_places AS m ON m.id = s.last_message_id
    """,
    # Of the last 100 of each chat, of which pages are read.
    """
    INSERT INTO message_delivery (
        message_id, user_id, status, delivered_at, created_at, chat_id, position
    )
    SELECT m.id, p.user_id, 'delivered', m.created_at, m.created_at, m.chat_id, m.position
    FROM chat_sequences AS s
    JOIN messages AS m ON m.chat_id = s.chat_id AND m.seq > s.last_seq - 100
    JOIN chat_participants AS p ON p.chat_id = m.chat_id AND p.user_id <> m.sender_id
    """,
    """
    INSERT INTO message_reactions (message_id, user_id, emoji, created_at)
    SELECT m.id, p.user_id, (ARRAY['👍', '❤️', ':tada:'])[ascii(p.user_id::text) %% 3 + 1],
        m.created_at
    FROM chat_sequences AS s
    JOIN messages AS m ON m.chat_id = s.chat_id AND m.seq > s.last_seq - 100 AND m.seq %% 5 = 0
    JOIN LATERAL (
        SELECT user_id
        FROM chat_participants
        WHERE chat_id = m.chat_id
        LIMIT 4
    ) AS p ON true
    """,
    # A tenth of the chats have something new.
    """
    INSERT INTO unread_counts (user_id, chat_id, count)
    SELECT user_id, chat_id, 3
    FROM chat_participants
    WHERE ascii(md5(chat_id::text)) %% 10 = 1
    """,
    """
    INSERT INTO contacts (user_id, contact_id, status, requested_by, created_at, accepted_at)
    SELECT md5('user' || n)::uuid, md5('user' || n + m)::uuid, 'accepted',
        md5('user' || n)::uuid, '2024-01-01Z'::timestamptz, '2024-01-01Z'
    FROM generate_series(1, %(readers)s) AS n, generate_series(1, 50) AS m
    """,
    """
    INSERT INTO projection_checkpoints (projection, position, updated_at)
    SELECT unnest(%(projections)s::text[]), %(messages)s, now()
    ON CONFLICT (projection) DO UPDATE
    SET position = excluded.position
    """,
)
SETTLE: LiteralString = "VACUUM ANALYZE"

OWN_IN_GROUP: LiteralString = """
    SELECT m.id::text
    FROM messages AS m
    JOIN chat_sequences AS s ON s.chat_id = m.chat_id AND m.seq > s.last_seq - 100
    WHERE m.chat_id = %s AND m.sender_id = %s
    LIMIT 1
"""


class World(NamedTuple):
    """What was filled; `user` and `chat` tell ids by number, from 1."""

    connection: psycopg.Connection[Any]
    messages: int

    def user(self, number: int) -> str:
        return _id(f"user{number}")

    def chat(self, number: int) -> str:
        return _id(f"chat{number}")


class Section(NamedTuple):
    """A kind of query: what each reader (a user's number) asks for, in turn.

    `per_second` is of all readers together. `fill` adds what it needs beside FILL, with the same parameters.
    """

    name: str
    paths: Callable[[World, int], Sequence[str]]
    p99_ms: float
    per_second: float = PER_SECOND
    fill: tuple[LiteralString, ...] = ()


def _pages(world: World, reader: int) -> list[str]:
    numbers = [reader * 31 % BUSY_CHATS + n for n in range(PATHS_A_READER)]
    return [f"/v1/chats/{world.chat(n % (BUSY_CHATS - 1) + 1)}/messages" for n in numbers]


def _pages_of_group(world: World, reader: int) -> list[str]:
    return [f"/v1/chats/{world.chat(GROUP)}/messages"]


def _delivery(world: World, reader: int) -> list[str]:
    """A message of their own in the group."""
    arguments = (world.chat(GROUP), world.user(reader))
    row = world.connection.execute(OWN_IN_GROUP, arguments).fetchone()
    assert row is not None, f"reader {reader} said nothing in the group"
    return [f"/v1/messages/{row[0]}/delivery"]


# Where search has its line.
SECTIONS: tuple[Section, ...] = (
    Section("a page of 50 messages", _pages, 5.0),
    Section("a page of 50 messages in a group of 300", _pages_of_group, 5.0),
    Section("unread", lambda *_: ["/v1/unread"], 5.0),
    Section("50 chats of a user in 500", lambda *_: ["/v1/chats"], 50.0),
    Section("delivery in a group of 300", _delivery, 50.0),
    Section("50 contacts", lambda *_: ["/v1/contacts"], 50.0),
    Section("state of a user in 500 chats", lambda *_: ["/v1/state"], 200.0, STATES_PER_SECOND),
)
BASELINES = (
    Section("baseline: GET /health/live", lambda *_: ["/health/live"], 0.0),
    Section("baseline: GET /v1/users/me", lambda *_: ["/v1/users/me"], 0.0),
)


async def run(report: Report, *, is_quick: bool) -> None:
    seconds = QUICK_SECONDS if is_quick else SECONDS
    async with harness.postgres() as server:
        harness.note_server(report, server.url)
        url = harness.database(server, "queries")
        world = await _world(url, QUICK_MESSAGES if is_quick else MESSAGES)
        report.note(f"{world.messages:,} messages, filled and analysed")
        with harness.scratch() as directory:
            async with (
                nats.running(directory) as bus,
                process.running(url, bus.url, rate_limits="off") as api,
            ):
                await _measure(report, world, api.url, seconds)
        world.connection.close()


async def _measure(report: Report, world: World, url: str, seconds: float) -> None:
    for baseline in BASELINES:
        await _baseline(report, world, baseline, url)
    for section in SECTIONS:
        await _section(report, world, section, url, seconds)
    for baseline in BASELINES:
        await _baseline(report, world, baseline, url)


async def _baseline(report: Report, world: World, baseline: Section, url: str) -> None:
    steady = await _read(world, baseline, url, PER_SECOND, WARM_UP_SECONDS)
    report.add(f"{baseline.name}, p99", steady.p99_ms, "ms")
    most = await _read(world, baseline, url, 0.0, WARM_UP_SECONDS)
    report.add(f"{baseline.name}, back to back", most.per_second, "requests/s")


async def _section(
    report: Report, world: World, section: Section, url: str, seconds: float
) -> None:
    await _read(world, section, url, 0.0, WARM_UP_SECONDS)
    steady = await _read(world, section, url, section.per_second, seconds)
    report.add(f"{section.name}, p50", steady.p50_ms, "ms")
    report.add(f"{section.name}, p99", steady.p99_ms, "ms", target=below(section.p99_ms))
    most = await _read(world, section, url, 0.0, seconds)
    report.add(f"{section.name}, back to back", most.per_second, "requests/s")
    report.note(
        f"{section.name}: {most.mean_bytes / 1024:.1f} KiB; "
        f"back to back p50 {most.p50_ms:.1f} ms, p99 {most.p99_ms:.1f} ms"
    )


async def _read(
    world: World, section: Section, url: str, per_second: float, seconds: float
) -> Result:
    requests = [
        [_request(path, world.user(reader)) for path in section.paths(world, reader)]
        for reader in range(1, READERS + 1)
    ]
    return await readers.apart(Plan(url, requests, per_second, seconds))


def _request(path: str, user_id: str) -> str:
    now = int(time.time())
    caller = Caller(UserId(user_id), _id("session"), now + TOKEN_SECONDS)
    token = Tokens(SECRET).access(caller, issued_at=now)
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n"


async def _world(url: str, messages: int) -> World:
    async with await database.connect(url, name="bench") as connection:
        await partitions.Known().ensure(connection, "messages", MONTHS)
    parameters = {
        "messages": messages,
        "users": USERS,
        "chats": CHATS,
        "busy_chats": BUSY_CHATS,
        "group_size": GROUP_SIZE,
        "speakers": GROUP_SPEAKERS,
        "readers": READERS,
        "texts": list(TEXTS),
        "kinds": len(TEXTS),
        "projections": list(NAMES),
    }
    filling = psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor)
    for statement in _fill():
        filling.execute(statement, parameters)
    filling.execute(SETTLE)
    return World(filling, messages)


def _fill() -> Iterator[LiteralString]:
    yield from FILL
    for section in SECTIONS:
        yield from section.fill


def _id(name: str) -> str:
    """As `md5(name)::uuid` has it."""
    return str(UUID(md5(name.encode()).hexdigest()))
