"""Commands in flight: a bounded number, started in order and settled in order.

A flight is the tasks of one line and what is done with their results. Tasks run from the
moment they are made; flights are settled oldest first, so reports come in the order of lines.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from domain.refusals import Refusal
from infra.executor import Done, Executor, Request

MAX_IN_FLIGHT = 256
# So many start before the appender gets its turn: one batch forms while another commits.
STARTED_TOGETHER = 64

Result = Done | Refusal
Flying = asyncio.Task[Result]
Settle = Callable[[list[Result]], None]


async def carried_out(executor: Executor, request: Request) -> Result:
    """A refusal is a result here. Raises Unavailable."""
    try:
        return await executor.execute(request)
    except Refusal as refusal:
        return refusal


class Pipeline:
    """`async with` cancels what is still in flight after an error."""

    def __init__(self) -> None:
        self._flights: deque[tuple[list[Flying], Settle]] = deque()
        self._begun = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for tasks, _ in self._flights for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def begin(self, settle: Settle) -> list[Flying]:
        """A new flight, when there is room: the list to which its tasks are added."""
        self._begun += 1
        if self._begun % STARTED_TOGETHER == 0:
            await asyncio.sleep(0)
        while len(self._flights) >= MAX_IN_FLIGHT:
            await self._settle_oldest()
        tasks: list[Flying] = []
        self._flights.append((tasks, settle))
        return tasks

    async def landed(self) -> None:
        """Waits for all that is in flight."""
        for tasks, _ in list(self._flights):
            for task in tasks:
                await task

    async def settle(self) -> None:
        while self._flights:
            await self._settle_oldest()

    async def _settle_oldest(self) -> None:
        tasks, settle = self._flights[0]
        results = [await task for task in tasks]
        self._flights.popleft()
        settle(results)
