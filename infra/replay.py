"""Replay: rebuilds read models beside the live ones while they serve, then swaps.

The swap is one short transaction: it locks the projection's checkpoint, which holds the live
projector still, brings the copy to where the live tables are, and exchanges the tables. It
gives up its locks before a waiting reader could be counted a deadlock, and tries again. The
tables that were live stay in the schema `retired_NAME` until the next replay or `--drop-retired`.
"""

import asyncio
from time import monotonic
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from infra import copies, database, rebuild, tables
from infra.database import Connection
from infra.errors import Unavailable
from infra.keyring import Keyring
from infra.rebuild import Progress, Rebuild
from infra.skips import Skip
from projections.projection import Projection

# Shorter than PostgreSQL's deadlock_timeout (1 s): the swap yields, never a reader.
SWAP_LOCK_TIMEOUT_MS = 300
SWAP_ATTEMPTS = 40
SWAP_RETRY_SECONDS = 0.25
# So close to the head the rest is done inside the swap.
SWAP_DISTANCE_EVENTS = 200
MAX_APPROACHES = 100

BEGIN_LIVE_CHECKPOINT = """
    INSERT INTO public.projection_checkpoints (projection, position, updated_at)
    VALUES (%s, 0, now())
    ON CONFLICT DO NOTHING
"""

LOCK_LIVE_CHECKPOINT = """
    SELECT position
    FROM public.projection_checkpoints
    WHERE projection = %s
    FOR UPDATE
"""

MOVE_LIVE_CHECKPOINT = """
    UPDATE public.projection_checkpoints
    SET position = %s,
        updated_at = now()
    WHERE projection = %s
"""

FORGET_FAILURE = """
    DELETE FROM public.projection_failures
    WHERE projection = %s
"""

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

SET_SCHEMA = sql.SQL("ALTER TABLE {source}.{table} SET SCHEMA {target}")


class Swap(NamedTuple):
    """`retired_at`: where the tables were that it put aside. `skipped`: what the new do without."""

    position: int
    retired_at: int
    seconds: float
    skipped: list[Skip]


class Past(NamedTuple):
    """A read model as of a position."""

    position: int
    skipped: list[Skip]


async def replay(projection: Projection, *, url: str, keyring: Keyring, progress: Progress) -> Swap:
    """Rebuilds and swaps; goes on where an interrupted one was. Raises Unavailable."""
    schema = f"rebuild_{projection.name}"
    async with rebuild.opened(projection, url=url, schema=schema, keyring=keyring) as copy:
        head = (await copy.reader.head()).position
        await copy.advance(head, progress)
        await copy.index()
        await _approach(copy, progress)
        swap = await _swap_when_free(copy)
        # They will not follow the log to the deletions of accounts that were still ahead.
        connection, retired = copy.writer.connection, retired_schema(projection)
        await copies.forget_since(connection, projection, retired, after=swap.retired_at)
        return swap


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
        await copy.advance(until, progress)
        await copy.index()
        connection = copy.writer.connection
        async with connection.transaction():
            skipped = await copy.skipped(until)
            await connection.execute(rebuild.CREATE_SCHEMA.format(schema=sql.Identifier(schema)))
            await _drop_tables(connection, projection, schema)
            await _move(connection, projection, scratch, schema)
            await rebuild.drop(connection, scratch)
        # Who was deleted while it was made, was forgotten before its last rows were written.
        await copies.forget_since(connection, projection, schema, after=until)
        return Past(copy.position, skipped)


async def drop_retired(projection: Projection, connection: Connection) -> None:
    await rebuild.drop(connection, retired_schema(projection))


def retired_schema(projection: Projection) -> str:
    return f"retired_{projection.name}"


async def _approach(copy: Rebuild, progress: Progress) -> None:
    """Close to a head that moves on meanwhile."""
    for _ in range(MAX_APPROACHES):
        head = (await copy.reader.head()).position
        if head - copy.position <= SWAP_DISTANCE_EVENTS:
            return
        await copy.advance(head, progress)
    raise Unavailable("the log grows faster than the rebuild follows")


async def _swap_when_free(copy: Rebuild) -> Swap:
    connection = copy.writer.connection
    await drop_retired(copy.projection, connection)
    await connection.execute(BEGIN_LIVE_CHECKPOINT, (copy.projection.name,))
    for _ in range(SWAP_ATTEMPTS):
        began = monotonic()
        try:
            async with connection.transaction():
                position, retired_at, skipped = await _swap(copy)
            return Swap(position, retired_at, monotonic() - began, skipped)
        except psycopg.errors.LockNotAvailable:
            await asyncio.sleep(SWAP_RETRY_SECONDS)
    raise Unavailable(
        f"the tables of {copy.projection.name} were never free for the swap; run it again"
    )


async def _swap(copy: Rebuild) -> tuple[int, int, list[Skip]]:
    connection, projection = copy.writer.connection, copy.projection
    await database.set_timeout(connection, "lock_timeout", SWAP_LOCK_TIMEOUT_MS, is_local=True)
    cursor = await connection.execute(LOCK_LIVE_CHECKPOINT, (projection.name,))
    row: Any = await cursor.fetchone()
    # Live tables of a log that went back may be beyond it; of them nothing holds.
    live = row[0] if row[0] <= (await copy.reader.head()).position else 0
    position: int = max(live, copy.position)
    skipped = await copy.skipped(position)
    if position > copy.position:
        events = await copy.reader.read(after=copy.position, up_to=position)
        await copy.writer.write(projection.plan(events), after=copy.position, up_to=position)
    retired = retired_schema(projection)
    await connection.execute(rebuild.CREATE_SCHEMA.format(schema=sql.Identifier(retired)))
    await _move(connection, projection, "public", retired)
    await _move(connection, projection, copy.schema, "public")
    await connection.execute(MOVE_LIVE_CHECKPOINT, (position, projection.name))
    await connection.execute(FORGET_FAILURE, (projection.name,))
    # With the swap or not at all: the next rebuild would go on in a schema without its tables.
    await rebuild.drop(connection, copy.schema)
    return position, live, skipped


async def _move(connection: Connection, projection: Projection, source: str, target: str) -> None:
    for table in await _members(connection, projection, source):
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
