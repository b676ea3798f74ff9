"""`messenger import irc` into a running system: lines a second, and the memory of every process.

A third of the days go into one system and all of them into another: a process whose memory grew
with the log would grow threefold. What does grow are caches on their way to their limits.
"""

import asyncio
from pathlib import Path
from time import perf_counter
from typing import LiteralString, NamedTuple

import psycopg

from tests.benchmarks import harness, history, pgbench, system
from tests.benchmarks.harness import Report, at_least, below_times_baseline

LINES_PER_SECOND = 1_500
SHORT_FILES = 20
QUICK_FILES = 2
POLL_SECONDS = 0.1
SETTLE_TIMEOUT_SECONDS = 120.0
BASELINE_SECONDS = 5
PGBENCH_CLIENTS = 64
GROWTH = 2.0

BEHIND: LiteralString = """
    SELECT position - (SELECT min(position) FROM projection_checkpoints)
    FROM log_head
"""


class Import(NamedTuple):
    lines_per_second: float
    settle_seconds: float
    peaks_mib: dict[str, float]
    inserts_per_second: float


async def run(report: Report, *, is_quick: bool) -> None:
    with history.logs() as files:
        if is_quick:
            files = files[:QUICK_FILES]
        long = await _import(report, files)
        report.add(
            "lines",
            long.lines_per_second,
            "lines/s",
            target=at_least(LINES_PER_SECOND),
        )
        report.add("read models at the head after", long.settle_seconds, "s")
        report.add("baseline: pgbench inserts of an event", long.inserts_per_second, "events/s")
        report.note(f"imported {history.name(files)}")
        if is_quick:
            return
        short = await _import(report, files[:SHORT_FILES])
    report.add(f"lines of {SHORT_FILES} files", short.lines_per_second, "lines/s")
    for name, peak in long.peaks_mib.items():
        report.add(
            f"peak memory of {name}, beside that of {SHORT_FILES} files",
            peak,
            "MiB",
            baseline=short.peaks_mib[name],
            target=below_times_baseline(GROWTH),
        )
    report.note("memory is the largest resident size; PostgreSQL's is that of its largest process")


async def _import(report: Report, files: list[Path]) -> Import:
    async with system.up() as running:
        if not report.notes:
            harness.note_server(report, running.database_url)
        began = perf_counter()
        peak = 0.0
        async with history.importing(files, {"MESSENGER_DATA_DIR": running.data_dir}) as process:
            while process.returncode is None:
                peak = system.peak_mib(process.pid) or peak
                await asyncio.sleep(POLL_SECONDS)
        ended = perf_counter()
        await _settle(running.database_url)
        settled = perf_counter()
        peaks = {name: used.peak_mib for name, used in system.used(running).items()}
        event = pgbench.last_message(running.database_url)
        inserts = await pgbench.inserts(
            running.database_url, event, clients=PGBENCH_CLIENTS, seconds=BASELINE_SECONDS
        )
    return Import(
        history.count_lines(files) / (ended - began),
        settled - ended,
        {"the importer": peak, **peaks},
        inserts.per_second,
    )


async def _settle(url: str) -> None:
    """Until every read model is at the head."""
    async with asyncio.timeout(SETTLE_TIMEOUT_SECONDS):
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            while True:
                row = await (await connection.execute(BEHIND)).fetchone()
                if row == (0,):
                    return
                await asyncio.sleep(POLL_SECONDS)
