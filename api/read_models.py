"""Reads from the read models: one snapshot a query, at a position that the answer states.

A read runs in one repeatable-read transaction that begins with the checkpoints of the
projections it uses; the lowest is the answer's `Log-Position`. Asked for a position that they
have not reached, it waits: one watcher a process looks at the checkpoints while anybody
waits, woken by the projectors' hints, with a slow poll as truth.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from typing import Any, LiteralString, NamedTuple, Self, TypeVar

import psycopg

from api.problems import ReadModelBehind
from domain.refusals import Invalid, Refusal
from infra import database, event_log, pipelined
from infra.bus import PROJECTED, Bus
from infra.database import DOWN
from infra.ending import end
from infra.errors import Unavailable
from infra.objects import Objects
from infra.pipelined import Connection, Pipeline, Row, Shape
from infra.tables import TAKEN_FIRST

T = TypeVar("T")

POLL_SECONDS = 0.05
PAUSE_SECONDS = 0.005
MAX_WAITING_READS = 2_000
BEGIN: LiteralString = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
COMMIT: LiteralString = "COMMIT"

# Held before the snapshot is taken: a replay's swap has to wait for the table it takes first.
# Else the snapshot could be older than the rows of tables that were swapped in under it.
HOLD: LiteralString = "LOCK TABLE {tables} IN ACCESS SHARE MODE"

CHECKPOINTS = """
    SELECT projection, position
    FROM projection_checkpoints
"""


class _Waiting(NamedTuple):
    used: tuple[str, ...]
    position: int
    reached: asyncio.Future[None]


class Snapshot:
    """The read models as of one moment, and the store of the objects that they name."""

    def __init__(self, pipeline: Pipeline, objects: Objects) -> None:
        self._pipeline = pipeline
        self.objects = objects

    async def rows(self, statement: LiteralString, arguments: dict[str, Any]) -> list[Row]:
        return await self.rows_for(pipelined.as_dicts, statement, arguments)

    async def rows_for(
        self, shape: Shape[T], statement: LiteralString, arguments: dict[str, Any]
    ) -> list[T]:
        sent = self._pipeline.send_for(shape, statement, arguments)
        await self._pipeline.exchange()
        return sent.rows

    def beforehand(self, statement: LiteralString, arguments: dict[str, Any]) -> None:
        """For what it does to the statement after it, with which it goes."""
        self._pipeline.send(statement, arguments)

    async def row(self, statement: LiteralString, arguments: dict[str, Any]) -> Row | None:
        return next(iter(await self.rows(statement, arguments)), None)


class ReadModels:
    """`async with` runs the watcher."""

    def __init__(
        self,
        pool: pipelined.Pool,
        log_pool: database.Pool,
        bus: Bus,
        objects: Objects,
        *,
        wait_seconds: float,
    ) -> None:
        self._pool = pool
        self._log_pool = log_pool
        self._bus = bus
        self._objects = objects
        self._wait_seconds = wait_seconds
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._head = 0
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._bus.listen(f"{PROJECTED}.*", self._hear)
        self._task = asyncio.create_task(self._watch(), name="read models")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)
        await asyncio.gather(*self._ending, return_exceptions=True)

    @property
    def pool(self) -> pipelined.Pool:
        return self._pool

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def read(
        self,
        used: tuple[str, ...],
        min_position: int,
        work: Callable[[Snapshot], Awaitable[T]],
    ) -> tuple[T, int]:
        """What `work` finds, and the position it is as of.

        Raises what `work` raises; Invalid for a position that the log has not; ReadModelBehind.
        """
        deadline = time.monotonic() + self._wait_seconds
        while True:
            outcome, position = await self._once(used, work)
            if position >= min_position:
                if isinstance(outcome, Refusal):
                    raise outcome
                return outcome, position
            await self._refuse_beyond_head(min_position)
            await self._reached(used, min_position, deadline - time.monotonic())

    async def _once(
        self, used: tuple[str, ...], work: Callable[[Snapshot], Awaitable[T]]
    ) -> tuple[T | Refusal, int]:
        connection = await self._pool.getconn()
        try:
            return await self._look(connection.own_pipeline, used, work)
        finally:
            # Nobody waits for the end of what only read.
            ending = asyncio.create_task(self._end(connection))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _look(
        self,
        pipeline: Pipeline,
        used: tuple[str, ...],
        work: Callable[[Snapshot], Awaitable[T]],
    ) -> tuple[T | Refusal, int]:
        pipeline.send(BEGIN)
        pipeline.send(_hold(used))
        checkpoints = pipeline.send(CHECKPOINTS)
        outcome: T | Refusal
        try:
            outcome = await work(Snapshot(pipeline, self._objects))
        except Refusal as refusal:
            outcome = refusal
        await pipeline.exchange()  # in case that nothing was looked for
        return outcome, _lowest(_positions(checkpoints.rows), used)

    async def _end(self, connection: Connection) -> None:
        """A connection is used again only if it is known to be good."""
        try:
            await connection.own_pipeline.end(COMMIT)
        except psycopg.Error:
            await connection.close()
        finally:
            await self._pool.putconn(connection)

    async def _refuse_beyond_head(self, position: int) -> None:
        if position <= self._head:
            return
        async with self._log_pool.connection() as connection:
            self._head = (await event_log.head(connection)).position
        if position > self._head:
            raise Invalid(f"the log ends at {self._head}", field="Min-Log-Position")

    async def _reached(self, used: tuple[str, ...], position: int, seconds: float) -> None:
        if len(self._waiting) >= MAX_WAITING_READS:
            raise Unavailable("too many reads wait for their position")
        waiting = _Waiting(used, position, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._wake.set()
        try:
            async with asyncio.timeout(seconds):
                await waiting.reached
        except TimeoutError:
            raise ReadModelBehind(f"the read models have not reached {position} yet") from None
        finally:
            with suppress(ValueError):
                self._waiting.remove(waiting)

    async def _hear(self, _: object) -> None:
        self._moved.set()

    async def _watch(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                try:
                    self._resolve(await self._checkpoints())
                except DOWN as error:
                    self._fail(Unavailable(f"the database does not answer: {error}"))
                await self._moved_or_due()

    async def _checkpoints(self) -> dict[str, int]:
        async with self._pool.connection() as connection:
            return dict(await (await connection.execute(CHECKPOINTS)).fetchall())

    async def _moved_or_due(self) -> None:
        await asyncio.sleep(PAUSE_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._moved.wait()
        self._moved.clear()

    def _resolve(self, positions: dict[str, int]) -> None:
        for waiting in self._waiting:
            if not waiting.reached.done() and _lowest(positions, waiting.used) >= waiting.position:
                waiting.reached.set_result(None)
        self._waiting = [waiting for waiting in self._waiting if not waiting.reached.done()]

    def _fail(self, error: Unavailable) -> None:
        for waiting in self._waiting:
            if not waiting.reached.done():
                waiting.reached.set_exception(error)
        self._waiting = []


@cache
def _hold(used: tuple[str, ...]) -> LiteralString:
    return HOLD.format(tables=", ".join(f"ONLY {TAKEN_FIRST[name]}" for name in used))


def _positions(checkpoints: list[Row]) -> dict[str, int]:
    return {row["projection"]: row["position"] for row in checkpoints}


def _lowest(positions: dict[str, int], used: tuple[str, ...]) -> int:
    """A projection that has not begun is at 0."""
    return min(positions.get(name, 0) for name in used)
