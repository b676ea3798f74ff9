"""A TCP cable between processes and a server, which can be cut, reset, slow, or swallow.

Whoever is connected while it swallows hears nothing any more, for ever, and is told nothing: what
they say is lost too. Their server is told that they are gone when the cable is mended: it would
notice by its keepalives, which no cable within one machine can keep from being answered.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from infra.ending import end

CHUNK_BYTES = 65_536


class Target(NamedTuple):
    host: str
    port: int


class Link:
    """One connection through the cable."""

    def __init__(self, task: "asyncio.Task[None]") -> None:
        self.task = task
        self.is_dead = False
        self.back: asyncio.StreamWriter | None = None

    def forget_server(self) -> None:
        if self.back is not None:
            self.back.transport.abort()


class Cable:
    """`laid` it is in use; where it leads is asked anew for each connection."""

    def __init__(self, target: Callable[[], Target]) -> None:
        self._target = target
        self._links: set[Link] = set()
        self._is_cut = False
        self._swallows = False
        self._delay_seconds = 0.0
        self.port = 0

    async def cut(self) -> None:
        """Connections break, and nobody gets another one."""
        self._is_cut = True
        await self.reset()

    async def reset(self) -> None:
        """Connections break."""
        if self._links:
            await end(*(link.task for link in self._links))

    def slow(self, seconds: float) -> None:
        """Whatever is said takes so long, each way."""
        self._delay_seconds = seconds

    def swallow(self) -> None:
        self._swallows = True
        for link in self._links:
            link.is_dead = True

    def mend(self) -> None:
        self._is_cut = self._swallows = False
        self._delay_seconds = 0.0
        for link in self._links:
            if link.is_dead:
                link.forget_server()

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[Self]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link = Link(task)
        link.is_dead = self._swallows
        self._links.add(link)
        try:
            if link.is_dead:
                await self._pump(link, reader, None)
            elif not self._is_cut:
                await self._carry(link, reader, writer)
        except (asyncio.CancelledError, OSError):
            pass
        finally:
            self._links.discard(link)
            writer.transport.abort()

    async def _carry(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        there, link.back = await asyncio.open_connection(*self._target())
        try:
            await asyncio.gather(
                self._pump(link, reader, link.back), self._backwards(link, there, writer)
            )
        finally:
            link.forget_server()

    async def _backwards(
        self, link: Link, there: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """The end of a server is not heard of through a dead link."""
        with suppress(OSError):
            await self._pump(link, there, writer)
        if not link.is_dead:
            raise ConnectionResetError

    async def _pump(
        self, link: Link, source: asyncio.StreamReader, target: asyncio.StreamWriter | None
    ) -> None:
        while chunk := await source.read(CHUNK_BYTES):
            if self._delay_seconds:
                await asyncio.sleep(self._delay_seconds)
            if target is not None and not link.is_dead:
                target.write(chunk)
                await target.drain()
        raise ConnectionResetError


def target_of(url: str, default_port: int = 5432) -> Target:
    parts = urlsplit(url)
    return Target(parts.hostname or "127.0.0.1", parts.port or default_port)


def by_cable(url: str, port: int) -> str:
    """The same server, reached by a cable with this port."""
    parts = urlsplit(url)
    signed, at, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{signed}{at}127.0.0.1:{port}").geturl()
