"""Rebuilds a projection in a schema of its own, with the very code that runs it live.

A rebuild is resumable: its checkpoint is in its schema, in the transaction of its rows, and
its shape is noted there, so that a rebuild begun by other code starts over. One process at a time works in a schema; what is
left of one that was killed ends within ORPHAN_MS.

Skipped events (infra.skips) are left out as they are live. A rebuild notes in its schema which
it leaves out; if one that it has written was skipped since, it starts over too.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from time import monotonic
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable, SetTableComment

from infra import database, skips, tables
from infra.database import Connection
from infra.ending import end
from infra.errors import Unavailable
from infra.keyring import Keyring
from infra.projector import (
    NOT_THE_EVENT,
    STATEMENT_TIMEOUT_MS,
    Pace,
    Reader,
    Writer,
    one_by_one,
)
from infra.skips import Skip
from projections.projection import Projection

MAX_BATCH_EVENTS = 10_000
# Beside those who serve, batches are small, and followed by so many times the time that they took.
BATCH_SECONDS = 0.008
REST_SHARE = 5.0
INDEX_TIMEOUT_MS = 3_600_000
TURN_TIMEOUT_MS = 15_000
# How often a backend looks, in the middle of a statement, whether its client is still there.
ORPHAN_MS = 1_000
MAX_MISSING_TOLD = 3

# What a rebuild needs in its schema, and tables that were put aside keep.
KEPT_BESIDE = (tables.projection_checkpoints, tables.skipped_events)

# Told the position reached and the one aimed at.
Progress = Callable[[int, int], None]

CREATE_SCHEMA = sql.SQL("CREATE SCHEMA IF NOT EXISTS {schema}")
DROP_SCHEMA = sql.SQL("DROP SCHEMA IF EXISTS {schema} CASCADE")
VACUUM = sql.SQL("VACUUM (ANALYZE) {table}")
NOTE_SHAPE = sql.SQL("COMMENT ON SCHEMA {schema} IS {shape}")

# Whoever may use the live table may use what takes its place.
RIGHTS = """
    SELECT a.privilege_type, r.rolname
    FROM pg_class AS c
    CROSS JOIN aclexplode(c.relacl) AS a
    JOIN pg_roles AS r ON r.oid = a.grantee
    WHERE c.oid = to_regclass('public.' || %s) AND a.grantee <> c.relowner
    ORDER BY a.privilege_type, r.rolname
"""

# Whoever may use a table may use the schema that its copy is in.
USERS = """
    SELECT DISTINCT r.rolname
    FROM pg_class AS c
    CROSS JOIN aclexplode(c.relacl) AS a
    JOIN pg_roles AS r ON r.oid = a.grantee
    WHERE c.relnamespace = 'public'::regnamespace
        AND c.relname = ANY (%s)
        AND a.grantee <> c.relowner
    ORDER BY r.rolname
"""

GRANT_USAGE = sql.SQL("GRANT USAGE ON SCHEMA {schema} TO {role}")

GRANTS = {
    "SELECT": sql.SQL("GRANT SELECT ON {table} TO {role}"),
    "INSERT": sql.SQL("GRANT INSERT ON {table} TO {role}"),
    "UPDATE": sql.SQL("GRANT UPDATE ON {table} TO {role}"),
    "DELETE": sql.SQL("GRANT DELETE ON {table} TO {role}"),
}

HONOURED = """
    SELECT position
    FROM skipped_events
    WHERE projection = %s AND position <= %s
    ORDER BY position
"""

# Before anything beyond the checkpoint is written. Skips are never taken back.
HONOUR = """
    INSERT INTO skipped_events (projection, position, type, reason, why, skipped_at)
    SELECT s.projection, s.position, s.type, s.reason, s.why, s.skipped_at
    FROM public.skipped_events AS s
    WHERE s.projection = %s AND s.position = ANY (%s)
    ON CONFLICT DO NOTHING
"""

SHAPE = """
    SELECT obj_description(to_regnamespace(%s), 'pg_namespace')
"""

# For as long as the connection lives.
TAKE_TURN = """
    SELECT pg_advisory_lock(hashtextextended('rebuild ' || %s, 0))
"""

LOOK_FOR_CLIENT = """
    SELECT set_config('client_connection_check_interval', %s, false)
"""

RETIRED = """
    SELECT nspname
    FROM pg_namespace
    WHERE nspname ~ ('^retired_' || %s || '(_[0-9]+)?$')
    ORDER BY nspname
"""

COLUMNS = """
    SELECT table_name, column_name
    FROM information_schema.columns
    WHERE table_schema = %s
"""


class Rebuild:
    """A projection in `schema`: opened by `opened`, filled by `advance`, ended by `settle`."""

    def __init__(
        self, projection: Projection, schema: str, reader: Reader, writer: Writer, known: list[Skip]
    ) -> None:
        self.projection = projection
        self.schema = schema
        self.reader = reader
        self.writer = writer
        self.position = 0
        self._known = known
        self._rest_share = REST_SHARE
        self._pace = Pace(MAX_BATCH_EVENTS, BATCH_SECONDS)

    async def hurry(self) -> None:
        """Nobody is served meanwhile: no breaks, and indexes at the end."""
        self._rest_share = 0.0
        self._pace = Pace(MAX_BATCH_EVENTS)
        await self.writer.connection.execute("SET vacuum_cost_delay = 0")

    @property
    def honoured(self) -> list[int]:
        """The positions that it leaves out."""
        return [skip.position for skip in self._known]

    async def skipped(self, up_to: int) -> list[Skip]:
        """What the rows up to a position do without, as the writer's transaction sees it.

        Raises Unavailable if that is not what the live ones do without.
        """
        recorded = await skips.of(self.writer.connection, self.projection.name, up_to=up_to)
        if recorded != [skip for skip in self._known if skip.position <= up_to]:
            raise Unavailable(
                f"an event of {self.projection.name} was skipped meanwhile; run it again"
            )
        return recorded

    async def advance(self, up_to: int, progress: Progress) -> None:
        """From where it is to a position. Raises Poisoned at an event that can't be applied."""
        async with aclosing(self._batches(up_to)) as batches:
            async for position in batches:
                progress(position, up_to)

    async def _batches(self, up_to: int) -> AsyncGenerator[int, None]:
        """The position after each batch. At full speed the next is read while one is written:
        else that would take two processors from those who serve."""
        ahead: asyncio.Task[Any] | None = None
        try:
            while self.position < up_to:
                began = monotonic()
                events = await (ahead or self._read(self.position, up_to))
                ahead = None if self._rest_share else self._read(events[-1].position, up_to)
                self.position = await self.writer.apply(events, after=self.position)
                seconds = monotonic() - began
                self._pace.took(len(events), seconds)
                yield self.position
                if self.position < up_to:
                    await asyncio.sleep(self._rest_share * seconds)
        except NOT_THE_EVENT:
            raise
        except Exception:
            await _settle(ahead)
            reach = min(up_to, self.position + MAX_BATCH_EVENTS)
            await one_by_one(self.reader, self.writer, after=self.position, up_to=reach)
            raise
        finally:
            await _settle(ahead)

    def _read(self, after: int, up_to: int) -> "asyncio.Task[Any]":
        reach = min(up_to, after + self._pace.events)
        return asyncio.create_task(self.reader.read(after=after, up_to=reach))

    async def index(self) -> None:
        """The indexes that writing does not need. At the end they cost the least, but at once."""
        connection = self.writer.connection
        await database.set_timeout(connection, "statement_timeout", INDEX_TIMEOUT_MS)
        for table in tables.tables_of(self.projection.name):
            for index in sorted(table.indexes, key=lambda index: str(index.name)):
                await connection.execute(_late_index(index))
        await database.set_timeout(connection, "statement_timeout", STATEMENT_TIMEOUT_MS)

    async def settle(self) -> None:
        """Tells the planner what is there, and readers which rows they all see."""
        connection = self.writer.connection
        await database.set_timeout(connection, "statement_timeout", INDEX_TIMEOUT_MS)
        for table in tables.tables_of(self.projection.name):
            await connection.execute(VACUUM.format(table=sql.Identifier(table.name)))
        await database.set_timeout(connection, "statement_timeout", STATEMENT_TIMEOUT_MS)


@asynccontextmanager
async def opened(
    projection: Projection,
    *,
    url: str,
    schema: str,
    keyring: Keyring,
    fresh: bool = False,
    up_to: int | None = None,
) -> AsyncIterator[Rebuild]:
    """Makes the schema and its tables, or goes on with those that an earlier run left, unless
    that went beyond `up_to`. Raises Unavailable while another process is at it."""
    async with _connections(projection, url, schema) as (reading, writing):
        await _prepare(writing, projection, schema, fresh=fresh)
        copy = await _copy(projection, schema, reading, writing, keyring)
        if not await _is_of_log(copy, up_to):
            await _prepare(writing, projection, schema, fresh=True)
        yield await _begun(copy)


@asynccontextmanager
async def reopened(
    projection: Projection, *, url: str, schema: str, keyring: Keyring
) -> AsyncIterator[Rebuild]:
    """Goes on with tables that a swap put aside. Raises Unavailable if this code can't."""
    async with _connections(projection, url, schema) as (reading, writing):
        await _refuse_missing(writing, projection, schema)
        copy = await _copy(projection, schema, reading, writing, keyring)
        if not await _is_of_log(copy, None):
            raise Unavailable(
                f"{schema} has what the log has not, or what was skipped since: {_anew(projection)}"
            )
        yield await _begun(copy)


@asynccontextmanager
async def _connections(
    projection: Projection, url: str, schema: str
) -> AsyncIterator[tuple[Connection, Connection]]:
    """One to read the log and one to write, when it is this process's turn."""
    name = f"rebuild {projection.name}"
    async with (
        await database.connect(url, name=name) as reading,
        await database.connect(
            url, name=name, statement_timeout_ms=STATEMENT_TIMEOUT_MS, search_path=schema
        ) as writing,
    ):
        # Nothing is lost with a crash here: the rebuild goes on from an older checkpoint.
        await writing.execute("SET synchronous_commit = off")
        # One processor is what a rebuild may take of the server, and not all the time.
        await writing.execute("SET vacuum_cost_delay = 10")
        await writing.execute("SET max_parallel_maintenance_workers = 0")
        await writing.execute(LOOK_FOR_CLIENT, (str(ORPHAN_MS),))
        await _take_turn(writing, schema)
        yield reading, writing


async def _take_turn(connection: Connection, schema: str) -> None:
    try:
        await database.set_timeout(connection, "lock_timeout", TURN_TIMEOUT_MS)
        await connection.execute(TAKE_TURN, (schema,))
        await database.set_timeout(connection, "lock_timeout", database.LOCK_TIMEOUT_MS)
    except psycopg.errors.LockNotAvailable as error:
        raise Unavailable(f"another process is at work in {schema}: wait, or end it") from error


async def _copy(
    projection: Projection,
    schema: str,
    reading: Connection,
    writing: Connection,
    keyring: Keyring,
) -> Rebuild:
    known = await skips.of(reading, projection.name)
    reader = Reader(projection, reading, keyring, [skip.position for skip in known])
    return Rebuild(projection, schema, reader, Writer(projection, writing), known)


async def _is_of_log(copy: Rebuild, up_to: int | None) -> bool:
    """Whether it went no further than it may, and did without just what it has to."""
    position = await copy.writer.checkpoint()
    # A log that went back may end before what an earlier run left.
    end = (await copy.reader.head()).position if up_to is None else up_to
    return position <= end and await _honours(copy.writer, copy.honoured, position)


async def _begun(copy: Rebuild) -> Rebuild:
    await copy.writer.connection.execute(HONOUR, (copy.projection.name, copy.honoured))
    copy.position = await copy.writer.checkpoint()
    return copy


async def retired(connection: Connection, projection: Projection) -> list[str]:
    """The schemas with what swaps put aside, of every version."""
    cursor = await connection.execute(RETIRED, (projection.name,))
    return [schema for (schema,) in await cursor.fetchall()]


async def _refuse_missing(connection: Connection, projection: Projection, schema: str) -> None:
    missing = await _missing(connection, projection, schema)
    if not missing:
        return
    there = await retired(connection, projection)
    if schema in there:
        lacks = ", ".join(missing[:MAX_MISSING_TOLD])
        raise Unavailable(f"{schema} lacks {lacks}, which this code needs: {_anew(projection)}")
    others = f", but {' and '.join(there)} for code of that version" if there else ""
    raise Unavailable(
        f"there is nothing to go back to: no schema {schema}{others}; no replay has put these tables "
        f"aside, or they were dropped since; {_anew(projection)}"
    )


def _anew(projection: Projection) -> str:
    return f"`messenger replay {projection.name}` makes the tables anew from the log"


async def _missing(connection: Connection, projection: Projection, schema: str) -> list[str]:
    """What this code's tables have and those in the schema have not."""
    found = set(await (await connection.execute(COLUMNS, (schema,))).fetchall())
    return [
        f"{table.name}.{column.name}"
        for table in _owned(projection)
        for column in table.columns
        if (table.name, column.name) not in found
    ]


async def _honours(writer: Writer, skipped: list[int], position: int) -> bool:
    """Whether what was written up to a position does without just what it has to."""
    cursor = await writer.connection.execute(HONOURED, (writer.projection.name, position))
    return [row[0] for row in await cursor.fetchall()] == [p for p in skipped if p <= position]


async def _settle(ahead: "asyncio.Task[Any] | None") -> None:
    if ahead is not None:
        await end(ahead)


async def drop(connection: Connection, schema: str) -> None:
    await connection.execute(DROP_SCHEMA.format(schema=sql.Identifier(schema)))


async def _prepare(
    connection: Connection, projection: Projection, schema: str, *, fresh: bool
) -> None:
    statements = _tables(projection)
    made_by = "\n".join([*statements, f"version {projection.version}"])
    shape = hashlib.sha256(made_by.encode()).hexdigest()
    cursor = await connection.execute(SHAPE, (schema,))
    row = await cursor.fetchone()
    if not fresh and row is not None and row[0] == shape:
        return
    async with connection.transaction():
        await drop(connection, schema)
        await make_schema(connection, projection, schema)
        for statement in statements:
            await connection.execute(statement.encode())
        for table in tables.tables_of(projection.name):
            await _grant(connection, table.name)
        await connection.execute(
            NOTE_SHAPE.format(schema=sql.Identifier(schema), shape=sql.Literal(shape))
        )


async def make_schema(connection: Connection, projection: Projection, schema: str) -> None:
    """If it is not there, for those who may use the live tables."""
    await connection.execute(CREATE_SCHEMA.format(schema=sql.Identifier(schema)))
    names = [table.name for table in tables.tables_of(projection.name)]
    cursor = await connection.execute(USERS, (names,))
    for (role,) in await cursor.fetchall():
        named = {"schema": sql.Identifier(schema), "role": sql.Identifier(role)}
        await connection.execute(GRANT_USAGE.format(**named))


async def _grant(connection: Connection, table: str) -> None:
    cursor = await connection.execute(RIGHTS, (table,))
    for right, role in await cursor.fetchall():
        if right in GRANTS:
            names = {"table": sql.Identifier(table), "role": sql.Identifier(role)}
            await connection.execute(GRANTS[right].format(**names))


def _owned(projection: Projection) -> list[sa.Table]:
    return [*tables.tables_of(projection.name), *KEPT_BESIDE]


def _tables(projection: Projection) -> list[str]:
    owned = _owned(projection)
    statements = [_ddl(CreateTable(table)) for table in owned]
    statements += [_ddl(SetTableComment(table)) for table in owned if table.comment]
    return statements + [
        _ddl(CreateIndex(index))
        for table in owned
        for index in sorted(table.indexes, key=lambda index: str(index.name))
        if index.info.get("needed_to_write")
    ]


def _late_index(index: sa.Index) -> bytes:
    return _ddl(CreateIndex(index, if_not_exists=True)).encode()


def _ddl(element: Any) -> str:
    return str(element.compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
