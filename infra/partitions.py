"""Monthly partitions, made when rows for their month are about to come."""

from collections.abc import Iterable
from datetime import date

from psycopg import sql

from infra.database import Connection

EXISTING = """
    SELECT to_regclass(%s) IS NOT NULL
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


def partition_name(table: str, month: date) -> str:
    return f"{table}_{month.year:04}_{month.month:02}"


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
            cursor = await connection.execute(EXISTING, (name,))
            row = await cursor.fetchone()
            if row and row[0]:
                self._names.add(name)
            else:
                await _make(connection, table, name, month)


async def _make(connection: Connection, table: str, name: str, month: date) -> None:
    names = {"table": sql.Identifier(table), "partition": sql.Identifier(name)}
    await connection.execute(CREATE.format(**names))
    begin, end = f"{month.isoformat()} 00:00Z", f"{_next(month).isoformat()} 00:00Z"
    await connection.execute(ATTACH.format(**names, begin=sql.Literal(begin), end=sql.Literal(end)))


def _next(month: date) -> date:
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)
