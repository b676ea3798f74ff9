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
from typing import Any, LiteralString, NamedTuple, Self, TypeVar

from psycopg.errors import ActiveSqlTransaction
from psycopg.rows import DictRow, dict_row

from api.problems import ReadModelBehind
from domain.refusals import Invalid, Refusal
from infra import event_log
from infra.bus import PROJECTED, Bus
from infra.database import DOWN, SET_CONFIG, Connection, Pool
from infra.errors import Unavailable
from infra.objects import Objects

T = TypeVar("T")

POLL_SECONDS = 0.05
PAUSE_SECONDS = 0.005
MAX_WAITING_READS = 2_000
MAX_BAD_CONNECTIONS = 3

BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

# Before the snapshot is taken: a replay's swap has to wait for the table it takes first. Else
# the snapshot could be older than the rows of tables that were swapped in under it.
HOLD: dict[str, LiteralString] = {
    "users": "LOCK TABLE ONLY users IN ACCESS SHARE MODE",
    "contacts": "LOCK TABLE ONLY contacts IN ACCESS SHARE MODE",
    "chats": "LOCK TABLE ONLY chat_participants IN ACCESS SHARE MODE",
    "messages": "LOCK TABLE ONLY chat_sequences IN ACCESS SHARE MODE",
    "reactions": "LOCK TABLE ONLY message_reactions IN ACCESS SHARE MODE",
    "delivery": "LOCK TABLE ONLY delivery_members IN ACCESS SHARE MODE",
    "unread": "LOCK TABLE ONLY unread_counts IN ACCESS SHARE MODE",
    "search": "LOCK TABLE ONLY message_search IN ACCESS SHARE MODE",
}

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

    def __init__(self, connection: Connection, objects: Objects) -> None:
        self._connection = connection
        self.objects = objects

    async def rows(self, statement: LiteralString, arguments: dict[str, Any]) -> list[DictRow]:
        async with self._connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(statement, arguments)
            return await cursor.fetchall()

    async def set_local(self, setting: str, value: str) -> None:
        """A setting of PostgreSQL for the rest of the snapshot; costs no round trip."""
        await self._connection.execute(SET_CONFIG, (setting, value, True))

    async def row(self, statement: LiteralString, arguments: dict[str, Any]) -> DictRow | None:
        return next(iter(await self.rows(statement, arguments)), None)


class ReadModels:
    """`async with` runs the watcher."""

    def __init__(
        self, pool: Pool, log_pool: Pool, bus: Bus, objects: Objects, *, wait_seconds: float
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

    async def __aenter__(self) -> Self:
        await self._bus.listen(f"{PROJECTED}.*", self._hear)
        self._task = asyncio.create_task(self._watch(), name="read models")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

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
        for _ in range(MAX_BAD_CONNECTIONS):
            with suppress(ActiveSqlTransaction):
                return await self._on_a_connection(used, work)
        return await self._on_a_connection(used, work)

    async def _on_a_connection(
        self, used: tuple[str, ...], work: Callable[[Snapshot], Awaitable[T]]
    ) -> tuple[T | Refusal, int]:
        """Raises ActiveSqlTransaction for one that was left inside a transaction."""
        async with self._pool.connection() as connection:
            try:
                return await self._look(connection, used, work)
            except BaseException:
                # It may have been cancelled anywhere, and what psycopg then leaves behind is not
                # sure to be good: some connections were seen to begin a transaction inside
                # another from then on, for each who got them. A new one costs little.
                await connection.close()
                raise

    async def _look(
        self,
        connection: Connection,
        used: tuple[str, ...],
        work: Callable[[Snapshot], Awaitable[T]],
    ) -> tuple[T | Refusal, int]:
        # In a pipeline, what begins the transaction costs no round trip of its own.
        async with connection.pipeline():
            await connection.execute(BEGIN)
            for projection in used:
                await connection.execute(HOLD[projection])
            checkpoints = await connection.execute(CHECKPOINTS)
            outcome: T | Refusal
            try:
                outcome = await work(Snapshot(connection, self._objects))
            except Refusal as refusal:
                outcome = refusal
            return outcome, _lowest(await checkpoints.fetchall(), used)

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

    async def _checkpoints(self) -> list[Any]:
        async with self._pool.connection() as connection:
            return await (await connection.execute(CHECKPOINTS)).fetchall()

    async def _moved_or_due(self) -> None:
        await asyncio.sleep(PAUSE_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._moved.wait()
        self._moved.clear()

    def _resolve(self, checkpoints: list[Any]) -> None:
        for waiting in self._waiting:
            if (
                not waiting.reached.done()
                and _lowest(checkpoints, waiting.used) >= waiting.position
            ):
                waiting.reached.set_result(None)
        self._waiting = [waiting for waiting in self._waiting if not waiting.reached.done()]

    def _fail(self, error: Unavailable) -> None:
        for waiting in self._waiting:
            if not waiting.reached.done():
                waiting.reached.set_exception(error)
        self._waiting = []


def _lowest(checkpoints: list[tuple[str, int]], used: tuple[str, ...]) -> int:
    """A projection that has not begun is at 0."""
    positions = dict(checkpoints)
    return min(positions.get(name, 0) for name in used)
