"""Verify: rebuilds a projection in a scratch schema and compares it with the live tables, row
by row, both ways, at one position."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from psycopg import sql

from infra import checkpoints, database, rebuild, tables
from infra.errors import Unavailable
from infra.keyring import Keyring
from infra.rebuild import Progress, Rebuild
from infra.skips import Skip
from projections.projection import Projection

MAX_DIFFERENCES_SHOWN = 20
LIVE_WAIT_SECONDS = 60.0
LIVE_POLL_SECONDS = 0.2
COMPARE_TIMEOUT_MS = 3_600_000

# Whole rows are compared; a row that is only on one side has a null other side.
COMPARE = sql.SQL(
    """
    SELECT count(*) OVER (), to_jsonb(live)::text, to_jsonb(rebuilt)::text
    FROM public.{table} AS live
    FULL JOIN {schema}.{table} AS rebuilt ON {same_key}
    WHERE live IS DISTINCT FROM rebuilt
    LIMIT {limit}
    """
)

HOLD = sql.SQL("LOCK TABLE ONLY public.{table} IN ACCESS SHARE MODE")

COUNT = sql.SQL("SELECT count(*) FROM public.{table}")


class Difference(NamedTuple):
    """Rows as JSON; None on the side that lacks it."""

    table: str
    live: str | None
    rebuilt: str | None


class Verdict(NamedTuple):
    projection: str
    position: int
    rows: int
    differing: int
    shown: list[Difference]
    skipped: list[Skip]


async def verify(
    projection: Projection, *, url: str, keyring: Keyring, progress: Progress
) -> Verdict:
    """Raises Unavailable if the live projection stays behind, or is of another version."""
    schema = f"verify_{projection.name}"
    async with rebuild.opened(
        projection, url=url, schema=schema, keyring=keyring, fresh=True
    ) as copy:
        await copy.hurry()
        await copy.advance((await copy.reader.head()).position, progress)
        await _live_reaches(copy)
        verdict = await _compare(copy)
        await rebuild.drop(copy.writer.connection, schema)
        return verdict


async def _live_reaches(copy: Rebuild) -> None:
    deadline = asyncio.get_running_loop().time() + LIVE_WAIT_SECONDS
    while await _live_position(copy) < copy.position:
        if asyncio.get_running_loop().time() > deadline:
            raise Unavailable(
                f"{copy.projection.name} is behind: its live tables do not reach {copy.position}"
            )
        await asyncio.sleep(LIVE_POLL_SECONDS)


async def _live_position(copy: Rebuild) -> int:
    name, version = copy.projection.name, copy.projection.version
    live = await checkpoints.live(copy.writer.connection, name)
    if live is not None and live.version != version:
        raise Unavailable(
            f"the live tables of {name} are of version {live.version}, this code is of {version}"
        )
    return live.position if live is not None else 0


async def _compare(copy: Rebuild) -> Verdict:
    """In one snapshot: the copy is brought to where the live tables are in it."""
    connection = copy.writer.connection
    await database.set_timeout(connection, "statement_timeout", COMPARE_TIMEOUT_MS)
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        # Before the snapshot: rows of tables swapped in later would not be in it.
        for table in tables.tables_of(copy.projection.name):
            await connection.execute(HOLD.format(table=sql.Identifier(table.name)))
        position = await _live_position(copy)
        skipped = await copy.skipped(position)
        if position > copy.position:
            events = await copy.reader.read(after=copy.position, up_to=position)
            steps = copy.projection.plan(events)
            await copy.writer.write(steps, after=copy.position, up_to=position)
        rows, differing, shown = 0, 0, []
        async for count, differences, found in _tables(copy):
            rows += count
            differing += differences
            shown += found
    return Verdict(copy.projection.name, position, rows, differing, shown, skipped)


async def _tables(copy: Rebuild) -> AsyncIterator[tuple[int, int, list[Difference]]]:
    connection = copy.writer.connection
    for table in tables.tables_of(copy.projection.name):
        name = sql.Identifier(table.name)
        row: Any = await (await connection.execute(COUNT.format(table=name))).fetchone()
        keys = [sql.Identifier(column.name) for column in table.primary_key]
        same_key = sql.SQL(" AND ").join(
            sql.SQL("live.{key} = rebuilt.{key}").format(key=key) for key in keys
        )
        cursor = await connection.execute(
            COMPARE.format(
                table=name,
                schema=sql.Identifier(copy.schema),
                same_key=same_key,
                limit=sql.Literal(MAX_DIFFERENCES_SHOWN),
            )
        )
        found = await cursor.fetchall()
        yield (
            row[0],
            found[0][0] if found else 0,
            [Difference(table.name, live, rebuilt) for _, live, rebuilt in found],
        )
