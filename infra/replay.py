"""Replay: rebuilds read models beside the live ones while they serve, then swaps.

The swap is one short transaction: it locks the projection's checkpoint, which holds the live
projector still, brings the copy to where the live tables are, and exchanges the tables. It
gives up its locks before a waiting reader could notice, and tries again. The tables that were
live stay in the schema `retired_NAME` until the next replay or `--drop-retired`; they keep their
place in the log, so `back` brings them to its head and swaps them in again.

Schemas bear the version of the projection's code, if it is not the first: tables of two versions
are built, kept and exchanged side by side, and each version's projectors write only to its own.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import NamedTuple, NotRequired, TypedDict, Unpack

import psycopg
from psycopg import sql

from infra import checkpoints, copies, database, rebuild, tables
from infra.checkpoints import Checkpoint
from infra.database import Connection
from infra.errors import Unavailable
from infra.keyring import Keyring
from infra.projector import STATEMENT_TIMEOUT_MS
from infra.rebuild import Progress, Rebuild
from infra.skips import Skip
from projections.projection import Projection

# So long the swap waits for the projector's batch; so long for readers, who queue behind it.
SWAP_CHECKPOINT_TIMEOUT_MS = 300
SWAP_TABLES_TIMEOUT_MS = 50
SWAP_ATTEMPTS = 40
SWAP_RETRY_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0)
# So close to the head the rest is done inside the swap.
SWAP_DISTANCE_EVENTS = 50
LIVE_DISTANCE_EVENTS = 1_000
MAX_APPROACHES = 100
# With breaks it may be slower than the log grows.
MAX_PACED_APPROACHES = 5
FOLLOW_SECONDS = 0.25

# Nobody who reads or writes waits for this one. Autovacuum goes out of its way, once we have waited
# for a second, and begins nothing new.
RESERVE = sql.SQL("LOCK TABLE {tables} IN SHARE UPDATE EXCLUSIVE MODE")
TAKE = sql.SQL("LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")

# The projection's tables and their partitions in a schema.
MEMBERS = """
    SELECT c.relname
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid
    LEFT JOIN pg_class AS parent ON parent.oid = i.inhparent
    WHERE n.nspname = %s
        AND c.relkind IN ('r', 'p')
        AND (c.relname = ANY (%s) OR parent.relname = ANY (%s))
    ORDER BY c.relname
"""

PLACE_OF_RETIRED = sql.SQL(
    """
    UPDATE {schema}.projection_checkpoints
    SET position = %s,
        version = %s
    WHERE projection = %s
    """
)

RENAME_SCHEMA = sql.SQL("ALTER SCHEMA {schema} RENAME TO {to}")
SET_SCHEMA = sql.SQL("ALTER TABLE {source}.{table} SET SCHEMA {target}")

# A reader, the projector or autovacuum was in the way.
IN_THE_WAY = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)


class Swap(NamedTuple):
    """`retired`: the schema with what it put aside, which holds as of `retired_at`. `skipped`: what
    the new do without."""

    position: int
    retired: str
    retired_at: int
    seconds: float
    skipped: list[Skip]


class Past(NamedTuple):
    """A read model as of a position."""

    position: int
    skipped: list[Skip]


class How(TypedDict):
    """`full_speed`: nobody is served meanwhile."""

    url: str
    keyring: Keyring
    progress: Progress
    full_speed: NotRequired[bool]


async def replay(projection: Projection, **how: Unpack[How]) -> Swap:
    """Rebuilds and swaps; goes on where an interrupted one, or `built`, was. Raises Unavailable."""
    async with built(projection, **how) as copy:
        return await _go_live(copy)


async def back(projection: Projection, **how: Unpack[How]) -> Swap:
    """Brings what a swap put aside to the head, and swaps it in again. Raises Unavailable."""
    schema = retired_schema(projection, projection.version)
    async with rebuild.reopened(
        projection, url=how["url"], schema=schema, keyring=how["keyring"]
    ) as copy:
        if how.get("full_speed"):
            await copy.hurry()
        await _approach(copy, how["progress"])
        return await _go_live(copy)


@asynccontextmanager
async def built(projection: Projection, **how: Unpack[How]) -> AsyncIterator[Rebuild]:
    """Beside the live ones and close to the head, where it stays until a replay goes on with it."""
    schema, progress = f"rebuild_{_label(projection, projection.version)}", how["progress"]
    async with rebuild.opened(
        projection, url=how["url"], schema=schema, keyring=how["keyring"]
    ) as copy:
        if how.get("full_speed"):
            await copy.hurry()
        else:
            # Made at the end they would take a processor for as long as it takes.
            await copy.index()
        await copy.advance(await _goal(copy), progress)
        await copy.index()
        await copy.settle()
        await _approach(copy, progress)
        yield copy


async def follow(copy: Rebuild, progress: Progress) -> None:
    """Keeps it at the head, until cancelled."""
    while True:
        await copy.advance((await copy.reader.head()).position, progress)
        await asyncio.sleep(FOLLOW_SECONDS)


async def as_of(
    projection: Projection,
    *,
    url: str,
    keyring: Keyring,
    until: int,
    schema: str,
    progress: Progress,
) -> Past:
    """The read model as it was at a position, in a schema that stays."""
    scratch = f"{schema}_{projection.name}_building"
    async with rebuild.opened(
        projection, url=url, schema=scratch, keyring=keyring, up_to=until
    ) as copy:
        await copy.hurry()
        await copy.advance(until, progress)
        await copy.index()
        await copy.settle()
        connection = copy.writer.connection
        async with connection.transaction():
            skipped = await copy.skipped(until)
            await rebuild.make_schema(connection, projection, schema)
            await _drop_tables(connection, projection, schema)
            members = await _members(connection, projection, scratch)
            await _move(connection, members, scratch, schema)
            # With the tables or not at all: the next would go on in a schema without them.
            await rebuild.drop(connection, scratch)
        # Who was deleted while it was made, was forgotten before its last rows were written.
        await copies.forget_since(connection, projection, schema, after=until)
        return Past(copy.position, skipped)


async def drop_retired(projection: Projection, connection: Connection) -> None:
    """Of every version."""
    for schema in await rebuild.retired(connection, projection):
        await rebuild.drop(connection, schema)


def retired_schema(projection: Projection, version: int) -> str:
    return f"retired_{_label(projection, version)}"


def _label(projection: Projection, version: int) -> str:
    return projection.name if version == 1 else f"{projection.name}_{version}"


async def _approach(copy: Rebuild, progress: Progress) -> None:
    """Close to where the live tables are, which move on meanwhile."""
    for attempt in range(MAX_APPROACHES):
        if attempt == MAX_PACED_APPROACHES:
            await copy.hurry()
        goal = await _goal(copy)
        if goal - copy.position <= SWAP_DISTANCE_EVENTS:
            return
        await copy.advance(goal, progress)
    raise Unavailable("the log grows faster than the rebuild follows")


async def _goal(copy: Rebuild) -> int:
    """Beyond the live tables, if they are close to the head, it would only stop their projector."""
    head = (await copy.reader.head()).position
    live = await checkpoints.live(copy.reader.connection, copy.projection.name)
    is_close = live is not None and head - LIVE_DISTANCE_EVENTS <= live.position <= head
    return live.position if live is not None and is_close else head


async def _go_live(copy: Rebuild) -> Swap:
    swap = await _swap_when_free(copy)
    # They will not follow the log to the deletions of accounts that were still ahead.
    connection, projection = copy.writer.connection, copy.projection
    await copies.forget_since(connection, projection, swap.retired, after=swap.retired_at)
    return swap


async def _swap_when_free(copy: Rebuild) -> Swap:
    connection, projection = copy.writer.connection, copy.projection
    await checkpoints.begin(connection, projection.name, projection.version)
    for attempt in range(SWAP_ATTEMPTS):
        await _make_room(copy)
        try:
            async with connection.transaction():
                await connection.execute(RESERVE.format(tables=await _live_tables(copy)))
                began = monotonic()
                swap = await _swap(copy)
            return swap._replace(seconds=monotonic() - began)
        except IN_THE_WAY:
            last = len(SWAP_RETRY_SECONDS) - 1
            await asyncio.sleep(SWAP_RETRY_SECONDS[min(attempt, last)])
    raise Unavailable(
        f"the tables of {copy.projection.name} were never free for the swap; run it again"
    )


async def _make_room(copy: Rebuild) -> None:
    """What was put aside earlier goes before the swap, as long as nobody waits for it."""
    connection, projection = copy.writer.connection, copy.projection
    live = await checkpoints.live(connection, projection.name)
    schema = retired_schema(projection, live.version if live else projection.version)
    if schema != copy.schema:
        await rebuild.drop(connection, schema)


async def _swap(copy: Rebuild) -> Swap:
    connection, projection = copy.writer.connection, copy.projection
    timeout = SWAP_CHECKPOINT_TIMEOUT_MS
    await database.set_timeout(connection, "lock_timeout", timeout, is_local=True)
    live = await checkpoints.lock(connection, projection.name)
    assert live is not None, "it was begun, and is never removed"
    # Live tables of a log that went back may be beyond it; of them nothing holds.
    retired_at = live.position if live.position <= (await copy.reader.head()).position else 0
    position = max(retired_at, copy.position)
    skipped = await copy.skipped(position)
    if position > copy.position:
        events = await copy.reader.read(after=copy.position, up_to=position)
        await copy.writer.write(projection.plan(events), after=copy.position, up_to=position)
    retired = retired_schema(projection, live.version)
    await _exchange(copy, live, retired)
    await checkpoints.move(connection, projection.name, Checkpoint(position, projection.version))
    return Swap(position, retired, retired_at, 0.0, skipped)


async def _exchange(copy: Rebuild, live: Checkpoint, retired: str) -> None:
    """Of the copy's tables and the live ones, which come to be what the copy was: tables with a
    checkpoint and skips beside them."""
    connection, projection = copy.writer.connection, copy.projection
    aside = f"aside_{projection.name}"  # until the copy's schema, which may have that name, is gone
    names = {"schema": sql.Identifier(aside), "to": sql.Identifier(retired)}
    await rebuild.make_schema(connection, projection, aside)
    coming = await _members(connection, projection, copy.schema)
    await _take(connection, await _live_tables(copy))
    going = await _members(connection, projection, "public")
    async with connection.pipeline():
        await _move(connection, going, "public", aside)
        await _move(connection, coming, copy.schema, "public")
        beside = [table.name for table in rebuild.KEPT_BESIDE]
        await _move(connection, beside, copy.schema, aside)
        await rebuild.drop(connection, copy.schema)
        await rebuild.drop(connection, retired)
        await connection.execute(PLACE_OF_RETIRED.format(**names), (*live, projection.name))
        await connection.execute(RENAME_SCHEMA.format(**names))


async def _take(connection: Connection, live_tables: sql.Composable) -> None:
    """All of them within one short time, whoever reads."""
    timeout = SWAP_TABLES_TIMEOUT_MS
    await database.set_timeout(connection, "statement_timeout", timeout, is_local=True)
    await connection.execute(TAKE.format(tables=live_tables))
    timeout = STATEMENT_TIMEOUT_MS
    await database.set_timeout(connection, "statement_timeout", timeout, is_local=True)


async def _live_tables(copy: Rebuild) -> sql.Composable:
    """First the one that readers hold: who waits for another would be waited for."""
    first = tables.TAKEN_FIRST[copy.projection.name]
    members = await _members(copy.writer.connection, copy.projection, "public")
    owned = {table.name for table in tables.tables_of(copy.projection.name)}
    names = sorted(owned & set(members), key=lambda name: (name != first, name))
    return sql.SQL(", ").join(sql.Identifier("public", name) for name in names)


async def _move(connection: Connection, members: list[str], source: str, target: str) -> None:
    for table in members:
        await connection.execute(
            SET_SCHEMA.format(
                source=sql.Identifier(source),
                table=sql.Identifier(table),
                target=sql.Identifier(target),
            )
        )


async def _drop_tables(connection: Connection, projection: Projection, schema: str) -> None:
    for table in tables.tables_of(projection.name):
        await connection.execute(
            sql.SQL("DROP TABLE IF EXISTS {}.{}").format(
                sql.Identifier(schema), sql.Identifier(table.name)
            )
        )


async def _members(connection: Connection, projection: Projection, schema: str) -> list[str]:
    names = [table.name for table in tables.tables_of(projection.name)]
    cursor = await connection.execute(MEMBERS, (schema, names, names))
    return [row[0] for row in await cursor.fetchall()]
