"""Each projection over the imported history: catching up from 0 into live tables, and rebuilding.

A message of these days has some hundred recipients, so what bounds delivery and unread there is
rows, not events; the benchmark `fan_out` judges those. Rows are those that are left at the end.
"""

from time import perf_counter
from typing import LiteralString

import psycopg
from psycopg import sql

from infra import database, tables
from infra.keyring import Secret
from projections import PROJECTIONS
from projections.projection import Projection
from tests.benchmarks import harness, history, pgbench, projecting
from tests.benchmarks.harness import Report, at_least

EVENTS_PER_SECOND = 20_000
QUICK_FILES = 2
BASELINE_SECONDS = 5
PGBENCH_CLIENTS = 64

COUNT = sql.SQL("SELECT count(*) FROM {table}")
MESSAGES: LiteralString = """
    SELECT count(*)
    FROM event_log
    WHERE type = 'message_sent'
"""


async def run(report: Report, *, is_quick: bool) -> None:
    async with harness.postgres() as server:
        harness.note_server(report, server.url)
        url = harness.database(server, "history")
        with history.logs() as files:
            chosen = files[:QUICK_FILES] if is_quick else files
            environ = {
                "MESSENGER_DATABASE_URL": url,
                "MESSENGER_NATS_URL": projecting.NO_NATS,
            }
            began = perf_counter()
            async with history.importing(chosen, environ):
                pass
            rate = history.count_lines(chosen) / (perf_counter() - began)
            report.add("importing while nothing else runs", rate, "lines/s")
            report.note(f"imported {history.name(chosen)}: {_count(url, MESSAGES):,} messages")
        await _baseline(report, url)
        for projection in PROJECTIONS:
            await _project(report, url, projection)
        await _baseline(report, url)


async def _project(report: Report, url: str, projection: Projection) -> None:
    async with await database.connect(url, name="bench") as connection:
        secret = await Secret.load(None, connection)
    live = await projecting.catch_up(projection, url, secret)
    rebuilt = await projecting.rebuild(projection, url, secret)
    rows = sum(
        _count(url, COUNT.format(table=sql.Identifier(table.name)))
        for table in tables.tables_of(projection.name)
    )
    for how, taken in (("live", live), ("rebuild", rebuilt)):
        report.add(
            f"{projection.name}, {how}",
            taken.per_second(taken.events),
            "events/s",
            target=at_least(EVENTS_PER_SECOND),
        )
    report.note(
        f"{projection.name}: {live.events:,} events and {rows:,} rows, "
        f"{live.per_second(rows):,.0f} rows/s live, {rebuilt.per_second(rows):,.0f} rebuilt"
    )


async def _baseline(report: Report, url: str) -> None:
    rate = await pgbench.inserts(
        url, pgbench.last_message(url), clients=PGBENCH_CLIENTS, seconds=BASELINE_SECONDS
    )
    report.add("baseline: pgbench inserts of an event", rate.per_second, "events/s")


def _count(url: str, statement: LiteralString | sql.Composed) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(statement).fetchone()
    assert row is not None
    return int(row[0])
