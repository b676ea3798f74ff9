"""Who has an open connection, told to all by the log, under a lease.

Each gateway writes down the users that are connected to it, and that it lives. A user is online
while a living gateway has them; only the first connection and the end of the last one (after a
grace) are logged. Whoever changes something looks again after it wrote, so two that act at once
end with what is true. A gateway that is silent for LEASE_SECONDS is dead to all others: any of
them settles its users. One that stops in order leaves its rows to run out, so that clients that
come back at once are never seen to go.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

from commands.settle_presence import SettlePresence
from domain.ids import GatewayId, UserId
from infra.database import DOWN, Pool, first_line
from infra.errors import MessengerError
from infra.executor import Executor, Request
from infra.logs import Logger

BEAT_SECONDS = 4.0
LEASE_SECONDS = 12.0
STEP_TIMEOUT_SECONDS = 5.0
REAP_TIMEOUT_SECONDS = 60.0
MAX_SETTLED_AT_ONCE = 16
MAX_ROUNDS = 5
MAX_REAPED_AT_ONCE = 1_000

BEAT = """
    INSERT INTO gateways (id, seen_at)
    VALUES (%s, clock_timestamp())
    ON CONFLICT (id) DO UPDATE
    SET seen_at = excluded.seen_at
"""

HAS_USER = """
    INSERT INTO gateway_users (user_id, gateway_id)
    VALUES (%s, %s)
    ON CONFLICT DO NOTHING
"""

LACKS_USER = """
    DELETE FROM gateway_users
    WHERE user_id = %s AND gateway_id = %s
"""

IS_CONNECTED = """
    SELECT EXISTS (
        SELECT
        FROM gateway_users AS u
        JOIN gateways AS g ON g.id = u.gateway_id
        WHERE u.user_id = %s AND g.seen_at >= clock_timestamp() - make_interval(secs => %s)
    )
"""

OF_THE_DEAD = """
    SELECT u.user_id::text, u.gateway_id::text
    FROM gateways AS g
    JOIN gateway_users AS u ON u.gateway_id = g.id
    WHERE g.seen_at < clock_timestamp() - make_interval(secs => %s)
    LIMIT %s
"""

FORGET_THE_DEAD = """
    DELETE FROM gateways AS g
    WHERE g.seen_at < clock_timestamp() - make_interval(secs => %s)
        AND NOT EXISTS (
            SELECT
            FROM gateway_users AS u
            WHERE u.gateway_id = g.id
        )
"""


class Leases:
    """Settles users by what the rows say; also for who has no gateway of their own."""

    def __init__(self, pool: Pool, executor: Executor) -> None:
        self._pool = pool
        self._executor = executor

    async def settle(self, user_id: UserId) -> None:
        for _ in range(MAX_ROUNDS):
            is_connected = await self._is_connected(user_id)
            settle = SettlePresence(is_connected=is_connected)
            await self._executor.execute(Request(settle, user_id))
            if await self._is_connected(user_id) == is_connected:
                return

    async def reap(self) -> None:
        """Settles the users of gateways that are dead, and forgets those."""
        for user_id, gateway_id in await self._rows(
            OF_THE_DEAD, (LEASE_SECONDS, MAX_REAPED_AT_ONCE)
        ):
            await self.settle(user_id)
            await self.run(LACKS_USER, (user_id, gateway_id))
        await self.run(FORGET_THE_DEAD, (LEASE_SECONDS,))

    async def reap_forever(self, logger: Logger) -> None:
        """Apart from the beats, which may not wait; also where no gateway is."""
        while True:
            try:
                async with asyncio.timeout(REAP_TIMEOUT_SECONDS):
                    await self.reap()
            except (MessengerError, TimeoutError, *DOWN) as error:
                logger.warning("presence_waits", reason=first_line(error))
            await asyncio.sleep(BEAT_SECONDS)

    async def run(self, statement: Any, arguments: tuple[Any, ...]) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(statement, arguments)

    async def _is_connected(self, user_id: UserId) -> bool:
        rows = await self._rows(IS_CONNECTED, (user_id, LEASE_SECONDS))
        return bool(rows[0][0])

    async def _rows(self, statement: Any, arguments: tuple[Any, ...]) -> list[Any]:
        async with self._pool.connection() as connection:
            return await (await connection.execute(statement, arguments)).fetchall()


class Presence:
    """`came` and `went` with each connection; `run` for as long as the process lives."""

    def __init__(
        self,
        leases: Leases,
        gateway_id: GatewayId,
        logger: Logger,
        *,
        grace_seconds: float,
    ) -> None:
        self._leases = leases
        self._gateway_id = gateway_id
        self._logger = logger
        self._grace_seconds = grace_seconds
        self._connections: dict[UserId, int] = {}
        self._leaving: dict[UserId, asyncio.TimerHandle] = {}
        self._unsettled: set[UserId] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(MAX_SETTLED_AT_ONCE)
        self._turns: WeakValueDictionary[UserId, asyncio.Lock] = WeakValueDictionary()

    def came(self, user_id: UserId) -> None:
        count = self._connections.get(user_id, 0)
        self._connections[user_id] = count + 1
        leaving = self._leaving.pop(user_id, None)
        if leaving is not None:
            leaving.cancel()
        elif count == 0:
            self._settle_soon([user_id])

    def went(self, user_id: UserId) -> None:
        self._connections[user_id] -= 1
        if self._connections[user_id] == 0:
            del self._connections[user_id]
            loop = asyncio.get_running_loop()
            self._leaving[user_id] = loop.call_later(self._grace_seconds, self._left, user_id)

    async def run(self) -> None:
        beaten_at = float("-inf")
        while True:
            try:
                async with asyncio.timeout(STEP_TIMEOUT_SECONDS):
                    await self._leases.run(BEAT, (self._gateway_id,))
                # Others may have taken this one for dead meanwhile.
                if time.monotonic() - beaten_at > LEASE_SECONDS:
                    self._unsettled |= self._connections.keys()
                beaten_at = time.monotonic()
                self._settle_soon(self._unsettled)
                self._unsettled = set()
            except (MessengerError, TimeoutError, *DOWN) as error:
                self._logger.warning("presence_waits", reason=first_line(error))
            await asyncio.sleep(BEAT_SECONDS)

    def stop(self) -> None:
        for leaving in self._leaving.values():
            leaving.cancel()
        for task in self._tasks:
            task.cancel()

    def _left(self, user_id: UserId) -> None:
        self._leaving.pop(user_id, None)
        self._settle_soon([user_id])

    def _settle_soon(self, user_ids: Iterable[UserId]) -> None:
        for user_id in user_ids:
            task = asyncio.create_task(self._settle(user_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _settle(self, user_id: UserId) -> None:
        turn = self._turns.setdefault(user_id, asyncio.Lock())
        async with self._slots, turn:
            is_here = user_id in self._connections or user_id in self._leaving
            try:
                async with asyncio.timeout(STEP_TIMEOUT_SECONDS):
                    statement = HAS_USER if is_here else LACKS_USER
                    await self._leases.run(statement, (user_id, self._gateway_id))
                    await self._leases.settle(user_id)
            except (MessengerError, TimeoutError, *DOWN) as error:
                self._unsettled.add(user_id)
                self._logger.warning("presence_waits", reason=first_line(error))
