"""Copies of read models that no projector keeps: what a replay put aside or left unfinished, and
read models as of some position.

What an account's deletion erases in the live tables, it erases in them too, with the very same
plan; only the statements run, for a copy's position says nothing of what is erased in it.
"""

from typing import Any

import psycopg

from domain.event import Recorded
from domain.user import AccountDeleted
from infra import codec, database, tables
from infra.database import Connection, first_line
from infra.errors import Unavailable
from infra.projector import STATEMENT_TIMEOUT_MS, parameters
from projections import PROJECTIONS
from projections.projection import Projection, Statement

ATTEMPTS = 3
DELETIONS_AT_ONCE = 10_000

# The read models that show what was sealed.
FORGETFUL = tuple(
    projection
    for projection in PROJECTIONS
    if projection.opens and AccountDeleted in projection.handles
)

# A replay's, of whichever version, may lack some that this one has; others only look alike.
SCHEMAS = """
    SELECT n.nspname
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relname = ANY (%s) AND c.relkind IN ('r', 'p') AND n.nspname <> 'public'
    GROUP BY n.nspname
    HAVING count(*) = %s OR n.nspname ~ ('^(rebuild|retired)_' || %s || '(_[0-9]+)?$')
    ORDER BY n.nspname
"""

SEARCH_IN = """
    SELECT set_config('search_path', quote_ident(%s), true)
"""

DELETIONS = """
    SELECT position, recorded_at, type, schema_version, data::text
    FROM public.event_log
    WHERE type = 'account_deleted' AND position > %s
    ORDER BY position
    LIMIT %s
"""

# Another replay swapped, dropped or wrote meanwhile.
IN_THE_WAY = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
)


async def schemas(connection: Connection, projection: Projection) -> list[str]:
    """Where else than live the projection's tables are."""
    names = [table.name for table in tables.tables_of(projection.name)]
    cursor = await connection.execute(SCHEMAS, (names, len(names), projection.name))
    return [name for (name,) in await cursor.fetchall()]


async def forget(connection: Connection, deletion: Recorded) -> None:
    """In every copy there is."""
    for projection in FORGETFUL:
        for attempt in range(ATTEMPTS):
            try:
                for schema in await schemas(connection, projection):
                    await _apply(connection, projection, schema, [deletion])
                break
            except psycopg.errors.UndefinedColumn as error:
                raise Unavailable(
                    f"a copy of {projection.name} is of another version, and has to go first "
                    f"(`messenger replay {projection.name} --drop-retired`): {first_line(error)}"
                ) from error
            except IN_THE_WAY as error:
                if attempt + 1 == ATTEMPTS:
                    raise Unavailable(f"a replay is in the way: {first_line(error)}") from error


async def forget_since(
    connection: Connection, projection: Projection, schema: str, *, after: int
) -> None:
    """In one new copy, all who were deleted after a position: an earlier `forget` may have been
    done before the copy was there, or before its last rows were."""
    while projection in FORGETFUL:
        deletions = await _deletions(connection, after)
        if deletions:
            await _apply(connection, projection, schema, deletions)
            after = deletions[-1].position
        if len(deletions) < DELETIONS_AT_ONCE:
            return


async def _deletions(connection: Connection, after: int) -> list[Recorded]:
    cursor = await connection.execute(DELETIONS, (after, DELETIONS_AT_ONCE))
    return [
        Recorded(position, at, codec.decode(type_name, version, data))
        for position, at, type_name, version, data in await cursor.fetchall()
    ]


async def _apply(
    connection: Connection, projection: Projection, schema: str, deletions: list[Recorded]
) -> None:
    steps: list[Any] = projection.plan(deletions)
    async with connection.transaction():
        await connection.execute(SEARCH_IN, (schema,))
        await database.set_timeout(
            connection, "statement_timeout", STATEMENT_TIMEOUT_MS, is_local=True
        )
        for step in steps:
            if isinstance(step, Statement) and any(step.rows.values()):
                await connection.execute(step.sql, parameters(step))
