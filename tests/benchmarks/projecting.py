"""Times one projection over a log that is there: live tables from 0, and a rebuild with swap."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import LiteralString, NamedTuple

import psycopg
from psycopg import sql

from infra import database, replay, tables
from infra.bus import Bus
from infra.keyring import Keyring, Secret
from infra.logs import Logger
from infra.projector import Projector
from projections.projection import Projection

NO_NATS = "nats://127.0.0.1:1"  # catching up reads PostgreSQL alone
POLL_SECONDS = 0.005
TIMEOUT_SECONDS = 600.0
KEYRING_POOL_SIZE = 2
VACUUM_TIMEOUT_MS = 300_000

HEAD: LiteralString = """
    SELECT position
    FROM log_head
"""

# What ran before must not be paid for by what comes now: its dirty pages and dead rows.
CHECKPOINT: LiteralString = "CHECKPOINT"
VACUUM = sql.SQL("VACUUM (ANALYZE) {table}")


class Pass(NamedTuple):
    """How long a projection took for the whole log."""

    events: int
    seconds: float

    def per_second(self, count: int) -> float:
        return count / self.seconds


async def catch_up(projection: Projection, url: str, secret: Secret) -> Pass:
    """From 0 into the live tables with all their indexes."""
    head = _settled_head(url)
    async with _keyring(url, secret) as keyring:
        projector = Projector(
            projection,
            database_url=url,
            keyring=keyring,
            bus=Bus(NO_NATS, name="bench"),
            logger=Logger("error"),
        )
        began = perf_counter()
        running = asyncio.create_task(projector.run())
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while projector.position < head and not running.done():
                    await asyncio.sleep(POLL_SECONDS)
            elapsed = perf_counter() - began
            if running.done():
                await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    return Pass(head, elapsed)


async def rebuild(projection: Projection, url: str, secret: Secret) -> Pass:
    """What `messenger replay` does, swap included."""
    head = _settled_head(url)
    async with _keyring(url, secret) as keyring:
        began = perf_counter()
        await replay.replay(
            projection, url=url, keyring=keyring, progress=lambda *_: None, full_speed=True
        )
        elapsed = perf_counter() - began
    await _clean(projection, url)
    return Pass(head, elapsed)


async def _clean(projection: Projection, url: str) -> None:
    """What autovacuum would do in the middle of the next pass."""
    async with await database.connect(
        url, name="bench", statement_timeout_ms=VACUUM_TIMEOUT_MS
    ) as connection:
        await replay.drop_retired(projection, connection)
        for table in tables.tables_of(projection.name):
            await connection.execute(VACUUM.format(table=sql.Identifier(table.name)))


def _settled_head(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(CHECKPOINT)
        row = connection.execute(HEAD).fetchone()
    assert row is not None
    return int(row[0])


@asynccontextmanager
async def _keyring(url: str, secret: Secret) -> AsyncIterator[Keyring]:
    async with database.pool(url, name="bench keys", size=KEYRING_POOL_SIZE) as pool:
        yield Keyring(secret, pool)
