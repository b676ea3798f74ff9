"""`messenger maintain` in the database: partitions ahead, sessions that are over, old messages in
the archive; at any time, twice, by two at once, and with readers and writers in the way."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from commands.edit_message import EditMessage
from commands.send_message import SendMessage
from infra import housekeeping, migrate, partitions, replay
from infra.database import Connection
from infra.embedded import postgres as embedded_postgres
from infra.errors import Unavailable
from infra.executor import Request
from infra.housekeeping import Housekeeping
from projections import BY_NAME
from tests.infra import machines
from tests.infra.daemons import LOGGER, check_rows, connected, keyring, projected, projecting
from tests.infra.machines import Machine, fetch

TODAY = date(2026, 11, 25)
AHEAD = ["messages_2026_11", "messages_2026_12", "messages_2027_01", "messages_2027_02"]
COLD = "cold"
DUE = ["messages_2025_09", "messages_2025_10"]

TABLESPACE = """\
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE cold LOCATION '';
GRANT CREATE ON TABLESPACE cold TO messenger;
"""

PARTITIONS = """
    SELECT c.relname, coalesce(t.spcname, '')
    FROM pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid
    LEFT JOIN pg_tablespace AS t ON t.oid = c.reltablespace
    WHERE i.inhparent = 'public.messages'::regclass
    ORDER BY c.relname
"""

INDEXES = """
    SELECT DISTINCT coalesce(t.spcname, ''), x.indisvalid, parent.inhparent IS NOT NULL
    FROM pg_index AS x
    JOIN pg_class AS c ON c.oid = x.indexrelid
    LEFT JOIN pg_tablespace AS t ON t.oid = c.reltablespace
    LEFT JOIN pg_inherits AS parent ON parent.inhrelid = c.oid
    WHERE x.indrelid = to_regclass(%s)
"""

ADD_SESSION = """
    INSERT INTO sessions (
        id, user_id, refresh_hash, created_at, last_used_at, expires_at, ended_at
    )
    VALUES (gen_random_uuid(), gen_random_uuid(), '', now(), now(), %s, %s)
"""


@pytest.fixture
async def machine(database_url: str) -> AsyncIterator[Machine]:
    async with machines.running(database_url) as running:
        yield running


def keeping(machine: Machine, tablespace: str | None = None) -> Housekeeping:
    return Housekeeping(
        machine.pool,
        LOGGER,
        archive_tablespace=tablespace,
        archive_months=12,
        today=lambda: TODAY,
    )


async def found(machine: Machine) -> dict[str, str]:
    """Partitions with their tablespace."""
    async with machine.pool.connection() as connection:
        return dict(await fetch(connection, PARTITIONS))


# ------------------------------------------------------------------------- partitions


async def test_partitions_are_there_before_their_months_are(machine: Machine) -> None:
    for _ in range(2):
        await keeping(machine).once()
        assert list(await found(machine)) == AHEAD


async def test_many_at_once_make_each_partition_once(machine: Machine, database_url: str) -> None:
    async def write() -> None:
        async with connected(database_url) as connection, connection.transaction():
            await partitions.Known().ensure(connection, "messages", [date(2026, 12, 1)])
            await asyncio.sleep(0.1)

    await asyncio.gather(write(), *(keeping(machine).once() for _ in range(4)), write())
    assert list(await found(machine)) == AHEAD


@pytest.mark.parametrize(
    ("month", "count", "expected"),
    [
        (date(2026, 11, 1), 1, date(2026, 12, 1)),
        (date(2026, 12, 1), 1, date(2027, 1, 1)),
        (date(2026, 11, 1), 14, date(2028, 1, 1)),
        (date(2026, 1, 1), -1, date(2025, 12, 1)),
        (date(2026, 11, 1), -12, date(2025, 11, 1)),
        (date(2026, 11, 1), 0, date(2026, 11, 1)),
    ],
)
def test_months_are_counted(month: date, count: int, expected: date) -> None:
    assert partitions.following(month, count) == expected
    name = partitions.partition_name("messages", expected)
    assert partitions.month_of("messages", name) == expected
    assert partitions.month_of("messages", f"{name}_archiving") is None


# --------------------------------------------------------------------------- sessions


async def test_sessions_go_when_nobody_needs_to_know_of_them(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "SESSIONS_AT_ONCE", 2)
    now = datetime.now(UTC)
    kept = timedelta(seconds=housekeeping.SESSION_KEPT_SECONDS)
    late, soon, hour = now - 2 * kept, now - kept / 2, timedelta(hours=1)
    gone = [(late, None), (late, late), (now + hour, late)] * 3
    stay = [(soon, None), (now + hour, None), (now + hour, soon), (late, soon)]
    async with machine.pool.connection() as connection:
        for session in gone + stay:
            await connection.execute(ADD_SESSION, session)
    await asyncio.gather(*(keeping(machine).once() for _ in range(2)))
    async with machine.pool.connection() as connection:
        rows = await fetch(connection, "SELECT expires_at, ended_at FROM sessions")
    assert sorted(map(str, rows)) == sorted(map(str, stay))


async def test_a_round_without_time_only_does_what_can_not_wait(machine: Machine) -> None:
    now = datetime.now(UTC)
    async with machine.pool.connection() as connection:
        await connection.execute(ADD_SESSION, (now - timedelta(days=9), None))
    await keeping(machine).once(seconds=0)
    assert list(await found(machine)) == AHEAD
    async with machine.pool.connection() as connection:
        assert await fetch(connection, "SELECT count(*) FROM sessions") == [(1,)]


# ---------------------------------------------------------------------------- archive


class Years:
    """Ann says something each month, from September 2025 on, in a group."""

    def __init__(self, machine: Machine, url: str) -> None:
        self.machine = machine
        self.url = url
        self.messages: list[str] = []

    async def live(self) -> None:
        self.ann, ben = await self.machine.people(2)
        self.chat_id = await self.machine.group(self.ann, ben)
        for number in range(15):
            month = partitions.following(date(2025, 9, 1), number)
            at = datetime(month.year, month.month, 10, tzinfo=UTC)
            send = SendMessage(chat_id=self.chat_id, content=f"it is {month:%B}")
            done = await self.machine.executor.execute(Request(send, self.ann, now=at))
            self.messages.append(machines.answer(done)["message_id"])

    async def edit(self, number: int, content: str) -> None:
        edit = EditMessage(message_id=self.messages[number], content=content)  # type: ignore[arg-type]
        await self.machine.run(edit, self.ann)


@pytest.fixture(scope="module")
async def cold_server(
    anyio_backend: str, server_directory: Path
) -> AsyncIterator[embedded_postgres.Postgres]:
    """With a tablespace, which only a superuser can make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded_postgres, "CREATE", embedded_postgres.CREATE + TABLESPACE)
        async with embedded_postgres.running(server_directory / COLD, is_durable=False) as server:
            await asyncio.to_thread(migrate.upgrade, server.url)
            yield server


@pytest.fixture
async def years(
    cold_server: embedded_postgres.Postgres,
    database_of: Callable[..., AbstractContextManager[str]],
    nats_url: str,
) -> AsyncIterator[Years]:
    with database_of(cold_server.url, template="messenger") as url:
        async with machines.running(url) as machine:
            years = Years(machine, url)
            await years.live()
            async with projecting(url, nats_url):
                await projected(url)
            yield years


async def in_archive(machine: Machine, tablespace: str) -> list[str]:
    return [name for name, where in (await found(machine)).items() if where == tablespace]


async def test_old_months_move_and_stay_where_queries_find_them(
    years: Years, nats_url: str
) -> None:
    machine = years.machine
    await keeping(machine).once()
    assert await in_archive(machine, COLD) == []
    for _ in range(2):
        await keeping(machine, COLD).once()
        assert await in_archive(machine, COLD) == DUE
    async with machine.pool.connection() as connection:
        for name in DUE:
            assert await fetch(connection, INDEXES, f"public.{name}") == [(COLD, True, True)]
        contents = await fetch(connection, "SELECT content FROM messages ORDER BY created_at")
    assert len(contents) == 15
    # They are rows like any: edited, rebuilt, compared.
    await years.edit(0, "it was September")
    async with projecting(years.url, nats_url):
        await projected(years.url)
    await check_rows(years.url)


async def test_what_a_replay_brought_back_moves_again(years: Years) -> None:
    await keeping(years.machine, COLD).once()
    async with keyring(years.url) as keys:
        await replay.replay(
            BY_NAME["messages"], url=years.url, keyring=keys, progress=lambda *_: None
        )
    assert await in_archive(years.machine, COLD) == []
    await keeping(years.machine, COLD).once()
    assert await in_archive(years.machine, COLD) == DUE
    assert set(AHEAD) <= set(await found(years.machine))


async def test_two_at_once_archive_each_month_once(years: Years) -> None:
    await asyncio.gather(*(keeping(years.machine, COLD).once() for _ in range(3)))
    await keeping(years.machine, COLD).once()
    assert await in_archive(years.machine, COLD) == DUE
    assert await left_over(years.machine) == []


async def left_over(machine: Machine) -> list[Any]:
    statement = "SELECT relname FROM pg_class WHERE relname LIKE '%%archiving' AND relkind = 'r'"
    async with machine.pool.connection() as connection:
        return await fetch(connection, statement.encode())


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count(*) FROM public.messages",
        "UPDATE public.messages SET seq = seq WHERE created_at < '2025-10-01'",
        "LOCK TABLE public.messages_2025_09 IN ACCESS EXCLUSIVE MODE",
    ],
)
async def test_it_yields_to_who_reads_and_writes(years: Years, statement: LiteralString) -> None:
    async with connected(years.url) as busy:
        async with busy.transaction():
            await busy.execute(statement)
            await keeping(years.machine, COLD).once()
            assert await in_archive(years.machine, COLD) == []
            assert await left_over(years.machine) == []
            # Nobody waits behind it: that would be for longer than for any lock.
            async with connected(years.url) as reader:
                if "LOCK" not in statement:
                    await fetch(reader, "SELECT count(*) FROM messages")
        await keeping(years.machine, COLD).once()
    assert await in_archive(years.machine, COLD) == DUE


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE public.messages SET content = 'changed' WHERE created_at < '2025-10-01'",
        "DELETE FROM public.messages WHERE created_at < '2025-10-01'",
    ],
)
async def test_what_is_written_while_it_is_copied_is_not_lost(
    years: Years,
    monkeypatch: pytest.MonkeyPatch,
    change: LiteralString,
) -> None:
    """The copy lacks it, so the copy is given up."""
    execute = psycopg.AsyncConnection.execute
    async with connected(years.url) as writer:

        async def overtaken(self: Connection, query: Any, *given: Any) -> Any:
            if "IN SHARE MODE" in str(query) and "2025_09" in str(query):
                await execute(writer, change)
            return await execute(self, query, *given)

        with monkeypatch.context() as patch:
            patch.setattr(psycopg.AsyncConnection, "execute", overtaken)
            await keeping(years.machine, COLD).once()
    assert await in_archive(years.machine, COLD) == DUE[1:]
    async with years.machine.pool.connection() as connection:
        before = await fetch(connection, "SELECT content FROM messages ORDER BY created_at")
    await keeping(years.machine, COLD).once()
    assert await in_archive(years.machine, COLD) == DUE
    async with years.machine.pool.connection() as connection:
        after = await fetch(connection, "SELECT content FROM messages ORDER BY created_at")
    assert before == after


async def test_a_tablespace_that_is_not_there_is_named(machine: Machine) -> None:
    with pytest.raises(Unavailable, match="no tablespace 'nowhere'"):
        await keeping(machine, "nowhere").once()
    assert list(await found(machine)) == AHEAD


async def test_what_one_work_could_not_do_is_told_with_that_of_all_others(
    machine: Machine, database_url: str
) -> None:
    async with connected(database_url) as connection:
        await connection.execute("ALTER TABLE sessions RENAME TO gone")
    with pytest.raises(Unavailable, match='"sessions" does not exist; there is no tablespace'):
        await keeping(machine, "nowhere").once()
    assert list(await found(machine)) == AHEAD
