"""Monthly partitions, made when rows for their month are about to come."""

import re
from collections.abc import Iterable
from datetime import date

from psycopg import sql

from infra.database import Connection

# Of the catalog itself: to_regclass may answer from a cache that does not know yet what another
# session committed.
EXISTING = """
    SELECT EXISTS (
        SELECT
        FROM pg_class
        WHERE relname = %s AND pg_table_is_visible(oid)
    )
"""

# Made apart and then attached: attaching alone does not lock out readers of the others.
CREATE = sql.SQL(
    """
    CREATE TABLE IF NOT EXISTS {partition} (LIKE {table} INCLUDING ALL)
    """
)

ATTACH = sql.SQL(
    """
    ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES FROM ({begin}) TO ({end})
    """
)


# Who makes partitions at the same moment waits, and finds them made. One lock for all of a table's:
# attaching takes one of the table itself.
LOCK = """
    SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || '.' || %s::text, 0))
"""


def partition_name(table: str, month: date) -> str:
    return f"{table}_{month.year:04}_{month.month:02}"


def month_of(table: str, partition: str) -> date | None:
    """The other way round; None if that is no name of a month's partition."""
    found = re.fullmatch(rf"{table}_(\d{{4}})_(0[1-9]|1[0-2])", partition)
    return date(int(found[1]), int(found[2]), 1) if found else None


class Known:
    """The partitions that this connection's search path is known to have."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    async def ensure(self, connection: Connection, table: str, months: Iterable[date]) -> None:
        """In the caller's transaction: rolled back, what it made is looked for again."""
        for month in sorted(months):
            name = partition_name(table, month)
            if name in self._names:
                continue
            if await _exists(connection, name):
                self._names.add(name)
            else:
                await _make(connection, table, name, month)


async def _exists(connection: Connection, name: str) -> bool:
    row = await (await connection.execute(EXISTING, (name,))).fetchone()
    return bool(row and row[0])


async def _make(connection: Connection, table: str, name: str, month: date) -> None:
    await connection.execute(LOCK, (table,))
    if await _exists(connection, name):
        return
    names = {"table": sql.Identifier(table), "partition": sql.Identifier(name)}
    await connection.execute(CREATE.format(**names))
    await connection.execute(ATTACH.format(**names, **bounds(month)))


def bounds(month: date) -> dict[str, sql.Literal]:
    """Of the month's partition, as literals: `begin` and `end`."""
    return {
        "begin": sql.Literal(f"{month.isoformat()} 00:00Z"),
        "end": sql.Literal(f"{following(month).isoformat()} 00:00Z"),
    }


def following(month: date, count: int = 1) -> date:
    """The month that is so many later (or, negative, earlier)."""
    years, index = divmod(month.month - 1 + count, 12)
    return date(month.year + years, index + 1, 1)
