"""The baseline of writing: pgbench inserts single rows of a given event, prepared.

They go into a table with the log's own columns, checks and indexes. The event's JSON is a
parameter of the statement, so that its bytes travel with every insert, as they do for us.
"""

import asyncio
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

import psycopg

from infra.embedded.postgres import INSTALLATION, PACKAGE
from tests.benchmarks.harness import percentile

THREADS = 2
SAMPLED = 0.2  # of the transactions are logged with their time
TIMEOUT_SECONDS = 60.0

CREATE: LiteralString = """
    CREATE TABLE baseline_log (LIKE event_log INCLUDING ALL);
    CREATE SEQUENCE baseline_position;
"""

DROP: LiteralString = """
    DROP TABLE baseline_log;
    DROP SEQUENCE baseline_position;
"""

INSERT = """
INSERT INTO baseline_log (
    position, event_id, stream, stream_version, type, schema_version, data, metadata, recorded_at
)
VALUES (
    nextval('baseline_position'), uuidv7(), 'message-' || uuidv7(), 1, 'message_sent', 1,
    :data, :metadata, now()
);
"""

LAST_MESSAGE: LiteralString = """
    SELECT data::text, metadata::text
    FROM event_log
    WHERE type = 'message_sent'
    ORDER BY position DESC
    LIMIT 1
"""


class Rate(NamedTuple):
    per_second: float
    p50_ms: float
    p99_ms: float


class Event(NamedTuple):
    data: str
    metadata: str


def last_message(url: str) -> Event:
    """An event as the log really has it."""
    with psycopg.connect(url) as connection:
        row = connection.execute(LAST_MESSAGE).fetchone()
    assert row is not None, "there is a message in the log"
    return Event(*row)


async def inserts(url: str, event: Event, *, clients: int, seconds: int) -> Rate:
    with (
        psycopg.connect(url, autocommit=True) as connection,
        _table(connection),
        tempfile.TemporaryDirectory(prefix="messenger-pgbench-") as name,
    ):
        directory = Path(name)
        (directory / "insert.sql").write_text(INSERT)
        output = await _run(
            *("-c", str(clients), "-j", str(min(THREADS, clients)), "-T", str(seconds)),
            *("-n", "-M", "prepared", "-f", str(directory / "insert.sql")),
            *("-D", f"data={event.data}", "-D", f"metadata={event.metadata}"),
            *("-l", f"--sampling-rate={SAMPLED}", f"--log-prefix={directory / 'log'}"),
            url,
        )
        times_ms = _times_ms(directory)
    match = re.search(r"tps = ([\d.]+)", output)
    assert match, output
    return Rate(float(match[1]), percentile(times_ms, 0.5), percentile(times_ms, 0.99))


@contextmanager
def _table(connection: psycopg.Connection[Any]) -> Iterator[None]:
    connection.execute(CREATE)
    try:
        yield
    finally:
        connection.execute(DROP)


async def _run(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        str(_program()),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.defpath},
    )
    output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_SECONDS)
    assert process.returncode == 0, output.decode()
    return output.decode()


def _program() -> Path:
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / INSTALLATION / "bin" / "pgbench"


def _times_ms(directory: Path) -> list[float]:
    """Lines are: client, transaction, microseconds, script, time."""
    lines = [line for path in directory.glob("log*") for line in path.read_text().splitlines()]
    return [int(line.split()[2]) / 1000 for line in lines]
