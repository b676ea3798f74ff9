"""Places to start at: so many clients at once read what they missed.

A client that does not read what it gets lends its place to others while it is waited for, so that a
few of those keep nobody from starting. Each holds a page of events in memory all the while, so only
so many are waited for.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MAX_STARTS_AT_ONCE = 8
MAX_STALLED = 32
TAKE_SECONDS = 30.0


class Crowded(Exception):
    """Too many are waited for already."""


class Places:
    """Those of a process."""

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(MAX_STARTS_AT_ONCE)
        self.stalled = 0


class Place:
    """That of a client, while it has one."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._is_taken = False

    async def take(self) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(TAKE_SECONDS):
            await self._places.free.acquire()
        self._is_taken = True

    def give_back(self) -> None:
        if self._is_taken:
            self._is_taken = False
            self._places.free.release()

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[None]:
        """It is taken again at the end, unless that is an exception. Raises Crowded, TimeoutError."""
        if self._places.stalled >= MAX_STALLED:
            raise Crowded
        self.give_back()
        self._places.stalled += 1
        try:
            yield
        finally:
            self._places.stalled -= 1
        await self.take()
