"""Delivery and unread rows for messages in groups of 100 and of 300.

Each message of a group of 300 is 299 rows in each of the two tables. Timed are catching up
from 0 into live tables and the rebuild with its swap; beside them, over the same rows: COPY
into an equal table with and without its indexes, and one plain INSERT … SELECT.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg import sql

from infra.embedded.postgres import Postgres
from projections import delivery, unread
from projections.projection import Projection
from tests.benchmarks import harness, projecting, workload
from tests.benchmarks.harness import Report, at_least
from tests.infra import machines
from tests.infra.machines import SECRET

ROWS_PER_SECOND = 80_000
ROWS = 600_000
QUICK_ROWS = 30_000
GROUP_SIZES = (100, 300)
SENDERS = 64


class Fan(NamedTuple):
    """A projection that fans out, and the columns of its table that are not computed."""

    projection: Projection
    table: LiteralString
    columns: tuple[LiteralString, ...]


FANS = (
    Fan(
        delivery.PROJECTION,
        "message_delivery",
        ("message_id", "user_id", "status", "created_at", "chat_id", "position"),
    ),
    Fan(
        unread.PROJECTION,
        "unread_messages",
        ("user_id", "chat_id", "message_id", "created_at", "position"),
    ),
)

COUNT = sql.SQL("SELECT count(*) FROM {table}")
MAKE_EQUAL = sql.SQL("CREATE TABLE baseline (LIKE {table} INCLUDING ALL)")
MAKE_BARE = sql.SQL("CREATE TABLE baseline (LIKE {table} INCLUDING GENERATED INCLUDING DEFAULTS)")
DROP: LiteralString = "DROP TABLE IF EXISTS baseline"
COPY_OUT = sql.SQL(
    "COPY (SELECT {columns} FROM {table} ORDER BY position) TO STDOUT (FORMAT binary)"
)
COPY_IN = sql.SQL("COPY baseline ({columns}) FROM STDIN (FORMAT binary)")
# From a table that already has them in the order of the log, as COPY does.
KEEP = sql.SQL("CREATE TEMP TABLE source AS SELECT {columns} FROM {table} ORDER BY position")
INSERT = sql.SQL("INSERT INTO baseline ({columns}) SELECT {columns} FROM source")
SETTLE: LiteralString = "CHECKPOINT"


async def run(report: Report, *, is_quick: bool) -> None:
    rows = QUICK_ROWS if is_quick else ROWS
    async with harness.postgres() as server:
        harness.note_server(report, server.url)
        for size in GROUP_SIZES:
            await _group(report, server, size, rows)


async def _group(report: Report, server: Postgres, size: int, rows: int) -> None:
    url = harness.database(server, f"group_{size}")
    async with machines.running(url) as machine:
        seats = await workload.group(machine, await workload.people(machine, size))
        await workload.send(machine, seats, rows // (size - 1), together=SENDERS)
    for fan in FANS:
        live = await projecting.catch_up(fan.projection, url, SECRET)
        rebuilt = await projecting.rebuild(fan.projection, url, SECRET)
        with psycopg.connect(url, autocommit=True) as connection:
            count = _count(connection, fan)
            baselines = _baselines(connection, fan, count)
        name = f"{fan.projection.name}, groups of {size}"
        copied = baselines["COPY into an equal table"]
        for how, taken in (("live", live), ("rebuild", rebuilt)):
            report.add(
                f"{name}, {how}",
                taken.per_second(count),
                "rows/s",
                baseline=copied,
                target=at_least(ROWS_PER_SECOND),
            )
        for what, rate in baselines.items():
            report.add(f"{name}, {what}", rate, "rows/s")
        report.note(
            f"{name}: {count:,} rows of {live.events:,} events, "
            f"{live.per_second(live.events):,.0f} events/s live"
        )


def _count(connection: psycopg.Connection[Any], fan: Fan) -> int:
    row = connection.execute(COUNT.format(table=sql.Identifier(fan.table))).fetchone()
    assert row is not None
    return int(row[0])


def _baselines(connection: psycopg.Connection[Any], fan: Fan, count: int) -> dict[str, float]:
    """Rows a second of the plain ways to fill such a table."""
    rows = _rows(connection, fan)
    found = {}
    for what, make in (
        ("COPY into an equal table", MAKE_EQUAL),
        ("COPY without indexes and checks", MAKE_BARE),
    ):
        with _table(connection, fan, make):
            began = perf_counter()
            _copy(connection, fan, rows)
            found[what] = count / (perf_counter() - began)
    names = _names(fan)
    connection.execute(KEEP.format(**names))
    with _table(connection, fan, MAKE_EQUAL):
        began = perf_counter()
        connection.execute(INSERT.format(**names))
        found["plain INSERT … SELECT"] = count / (perf_counter() - began)
    return found


@contextmanager
def _table(connection: psycopg.Connection[Any], fan: Fan, make: sql.SQL) -> Iterator[None]:
    connection.execute(DROP)
    connection.execute(make.format(table=sql.Identifier(fan.table)))
    connection.execute(SETTLE)
    yield
    connection.execute(DROP)


def _rows(connection: psycopg.Connection[Any], fan: Fan) -> list[bytes]:
    with connection.cursor().copy(COPY_OUT.format(**_names(fan))) as copy:
        return [bytes(block) for block in copy]


def _copy(connection: psycopg.Connection[Any], fan: Fan, rows: list[bytes]) -> None:
    with connection.cursor().copy(COPY_IN.format(**_names(fan))) as copy:
        for block in rows:
            copy.write(block)


def _names(fan: Fan) -> dict[str, sql.Composable]:
    columns = sql.SQL(", ").join(sql.Identifier(column) for column in fan.columns)
    return {"table": sql.Identifier(fan.table), "columns": columns}
