"""Old months of messages move to a tablespace of their own, and stay where queries find them.

A partition is copied, in the order that pages are read in, and takes the place of the one it was
copied from: readers go on all the while, but for the moment of the exchange. That happens only if
nothing was written to the old one since; else, and whenever somebody is in the way, nothing
happened, and the next round tries again. All of it is one transaction: a copy that is broken off
leaves no text behind that an erasure would not reach.
"""

from datetime import date
from typing import Any

import psycopg
from psycopg import sql

from infra import database, partitions
from infra.database import Connection
from infra.errors import Unavailable

TABLE = "messages"
# Shorter than PostgreSQL's deadlock_timeout (1 s): the archive yields, never who reads or writes.
LOCK_TIMEOUT_MS = 300
COPY_TIMEOUT_MS = 600_000

# Those that are elsewhere; a database's own tablespace is called 0.
ELSEWHERE = """
    SELECT c.relname
    FROM pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid
    JOIN pg_tablespace AS t ON t.spcname = %s
    JOIN pg_database AS d ON d.datname = current_database()
    WHERE i.inhparent = 'public.messages'::regclass
        AND c.reltablespace <> CASE WHEN t.oid = d.dattablespace THEN 0::oid ELSE t.oid END
    ORDER BY c.relname
"""

TABLESPACE = """
    SELECT EXISTS (
        SELECT
        FROM pg_tablespace
        WHERE spcname = %s
    )
"""

ONE_AT_A_TIME = """
    SELECT pg_try_advisory_xact_lock(hashtextextended('archive', 0))
"""

USE_TABLESPACE = """
    SELECT set_config('default_tablespace', %s, true)
"""

# What began to be written later than this may be missing in the copy.
SEEN = """
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint % 4294967296
"""

COPY = (
    sql.SQL("CREATE TABLE public.{copy} (LIKE public.{table} INCLUDING ALL)"),
    # The bounds, so that attaching need not look at each row.
    sql.SQL(
        """
        ALTER TABLE public.{copy}
        ADD CONSTRAINT archived_month CHECK (created_at >= {begin} AND created_at < {end})
        """
    ),
    sql.SQL(
        """
        INSERT INTO public.{copy}
        SELECT *
        FROM public.{partition}
        ORDER BY chat_id, seq
        """
    ),
)

HOLD_WRITERS = sql.SQL("LOCK TABLE public.{partition} IN SHARE MODE")

UNCHANGED = sql.SQL(
    """
    SELECT count(*) = (SELECT count(*) FROM public.{copy})
        AND coalesce(min(age(xmin)) > age(%s::text::xid), true)
    FROM public.{partition}
    """
)

EXCHANGE = (
    sql.SQL("LOCK TABLE public.{table} IN ACCESS EXCLUSIVE MODE"),
    sql.SQL("ALTER TABLE public.{table} DETACH PARTITION public.{partition}"),
    sql.SQL("DROP TABLE public.{partition}"),
    sql.SQL("ALTER TABLE public.{copy} RENAME TO {partition}"),
    sql.SQL(
        """
        ALTER TABLE public.{table}
        ATTACH PARTITION public.{partition} FOR VALUES FROM ({begin}) TO ({end})
        """
    ),
    sql.SQL("ALTER TABLE public.{partition} DROP CONSTRAINT archived_month"),
)

# A reader, a writer or a replay was there first.
IN_THE_WAY = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.UndefinedTable,
)


async def due(connection: Connection, tablespace: str, before: date) -> list[str]:
    """The partitions of months that ended by `before` and are not in the tablespace, the oldest
    first. Raises Unavailable if there is no such tablespace."""
    row: Any = await (await connection.execute(TABLESPACE, (tablespace,))).fetchone()
    if not row[0]:
        raise Unavailable(f"there is no tablespace {tablespace!r} to archive messages in")
    rows = await (await connection.execute(ELSEWHERE, (tablespace,))).fetchall()
    months = [month for (name,) in rows if (month := partitions.month_of(TABLE, name))]
    return [
        partitions.partition_name(TABLE, month)
        for month in sorted(months)
        if partitions.following(month) <= before
    ]


async def archive(connection: Connection, partition: str, tablespace: str) -> bool:
    """False if somebody was in the way, or wrote meanwhile."""
    month = partitions.month_of(TABLE, partition)
    assert month is not None, partition
    names = {
        "table": sql.Identifier(TABLE),
        "partition": sql.Identifier(partition),
        "copy": sql.Identifier(f"{partition}_archiving"),
        **partitions.bounds(month),
    }
    try:
        async with connection.transaction():
            if not await _copy(connection, names, tablespace):
                raise _Changed
            for statement in EXCHANGE:
                await connection.execute(statement.format(**names))
    except (*IN_THE_WAY, _Changed):
        return False
    return True


class _Changed(Exception):
    """What was copied is not what is there."""


async def _copy(connection: Connection, names: dict[str, sql.Composable], tablespace: str) -> bool:
    """Whether the copy is whole; nobody writes to the original then."""
    row: Any = await (await connection.execute(ONE_AT_A_TIME)).fetchone()
    if not row[0]:
        return False
    await database.set_timeout(connection, "lock_timeout", LOCK_TIMEOUT_MS, is_local=True)
    await database.set_timeout(connection, "statement_timeout", COPY_TIMEOUT_MS, is_local=True)
    await connection.execute(USE_TABLESPACE, (tablespace,))
    seen: Any = await (await connection.execute(SEEN)).fetchone()
    for statement in COPY:
        await connection.execute(statement.format(**names))
    await connection.execute(HOLD_WRITERS.format(**names))
    row = await (await connection.execute(UNCHANGED.format(**names), (str(seen[0]),))).fetchone()
    return bool(row[0])
