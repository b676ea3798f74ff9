"""What `messenger maintain` does in the database: partitions for the months to come, what is left
of sessions that are over, and the archive of old messages.

Each round does what is missing and no more, most urgent first, and ends when its time is over:
what is left the next one finds. Any number of processes may do it at once, at any time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import date
from time import monotonic
from typing import Any

import psycopg

from infra import archive, clock, partitions
from infra.archive import TABLE
from infra.database import DOWN, Pool, first_line
from infra.errors import MessengerError, Unavailable
from infra.logs import Logger
from infra.metrics import UpkeepMetrics

PAUSE_SECONDS = 60.0
ROUND_SECONDS = 20.0
MONTHS_AHEAD = 3
SESSIONS_AT_ONCE = 1_000
# As long as an access token may live and a day: until then, its end has to be known.
SESSION_KEPT_SECONDS = 2 * 86_400.0

FORGET_SESSIONS = """
    DELETE FROM sessions
    WHERE id IN (
        SELECT id
        FROM sessions
        WHERE ended_at < now() - make_interval(secs => %(kept)s)
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    )
"""

FORGET_EXPIRED_SESSIONS = """
    DELETE FROM sessions
    WHERE id IN (
        SELECT id
        FROM sessions
        WHERE expires_at < now() - make_interval(secs => %(kept)s) AND ended_at IS NULL
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    )
"""

MEASURES = """
    SELECT
        (
            SELECT count(*)
            FROM pg_class AS c
            JOIN pg_inherits AS i ON i.inhrelid = c.oid
            WHERE c.relname = ANY (%s) AND pg_table_is_visible(c.oid)
        ) AS partitions_ahead,
        pg_database_size(current_database()) AS database_bytes
"""


class Housekeeping:
    """`archive_tablespace`: where months of messages go that ended `archive_months` ago; None
    leaves them."""

    def __init__(
        self,
        pool: Pool,
        logger: Logger,
        *,
        archive_tablespace: str | None,
        archive_months: int,
        today: Callable[[], date] = lambda: clock.now().date(),
        metrics: UpkeepMetrics | None = None,
    ) -> None:
        self._metrics = metrics or UpkeepMetrics()
        self._pool = pool
        self._logger = logger
        self._tablespace = archive_tablespace
        self._archive_months = archive_months
        self._today = today

    async def run(self) -> None:
        """For as long as the process lives."""
        while True:
            try:
                await self.once()
                self._metrics.round_at.set_to_current_time()
            except Unavailable:
                self._metrics.failures.labels("rounds").inc()
            await asyncio.sleep(PAUSE_SECONDS)

    async def once(self, *, seconds: float = ROUND_SECONDS) -> None:
        """A round. What one work could not do keeps no other from its own: raises Unavailable at
        the end, with the reasons of all."""
        works: tuple[Callable[[float], Awaitable[None]], ...] = (
            self._make_partitions,
            self._forget_sessions,
            self._archive_months_due,
            self._measure,
        )
        deadline, reasons = monotonic() + seconds, []
        for work in works:
            try:
                await work(deadline)
            except (MessengerError, psycopg.Error, *DOWN) as error:
                reasons.append(first_line(error))
                self._logger.warning("not_kept", reason=reasons[-1])
        if reasons:
            raise Unavailable("; ".join(dict.fromkeys(reasons)))

    async def _make_partitions(self, _: float) -> None:
        months = [partitions.following(self._month(), count) for count in range(MONTHS_AHEAD + 1)]
        async with self._pool.connection() as connection:
            for month in months:
                async with connection.transaction():
                    await partitions.Known().ensure(connection, TABLE, [month])

    async def _measure(self, _: float) -> None:
        names = [
            partitions.partition_name(TABLE, partitions.following(self._month(), count))
            for count in range(1, MONTHS_AHEAD + 1)
        ]
        async with self._pool.connection() as connection:
            cursor = await connection.execute(MEASURES, (names,))
            row: Any = await cursor.fetchone()
        self._metrics.partitions_ahead.set(row[0])
        self._metrics.database_bytes.set(row[1])

    async def _forget_sessions(self, deadline: float) -> None:
        arguments = {"kept": SESSION_KEPT_SECONDS, "limit": SESSIONS_AT_ONCE}
        for statement in (FORGET_SESSIONS, FORGET_EXPIRED_SESSIONS):
            forgotten = SESSIONS_AT_ONCE
            while forgotten == SESSIONS_AT_ONCE and monotonic() < deadline:
                async with self._pool.connection() as connection:
                    forgotten = (await connection.execute(statement, arguments)).rowcount

    async def _archive_months_due(self, deadline: float) -> None:
        if self._tablespace is None:
            return
        before = partitions.following(self._month(), -self._archive_months)
        async with self._pool.connection() as connection:
            for partition in await archive.due(connection, self._tablespace, before):
                if monotonic() >= deadline:
                    return
                if await archive.archive(connection, partition, self._tablespace):
                    self._logger.info("archived", partition=partition)

    def _month(self) -> date:
        return self._today().replace(day=1)
