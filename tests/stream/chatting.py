"""`messenger chat` as people without a terminal have it: a real process on two pipes.

`bad_line` is one between it and the server that breaks at the worst moment.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from tests.api.served import PASSWORD

WAIT_SECONDS = 45.0
CHUNK_BYTES = 65_536


class Chatting:
    """`lines` has all that it wrote."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._more = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def type(self, *lines: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        await self.process.stdin.drain()

    async def sees(self, text: str, *, times: int = 1) -> str:
        """The line that has the text in it, when there are so many of them."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                while len(self._with(text)) < times and not self._reading.done():
                    self._more.clear()
                    await self._more.wait()
        found = self._with(text)
        assert len(found) >= times, f"no {text!r} in {self.lines}"
        return found[times - 1]

    def _with(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]

    def messages(self) -> list[str]:
        """What was said, as it stands on the screen: without time and marks."""
        said = [line for line in self.lines if line.startswith("#")]
        return [line.partition(" ")[2].partition(" ")[2].removesuffix(" (sent)") for line in said]

    async def ends(self) -> int:
        """By the end of input."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(WAIT_SECONDS):
            await self._reading
            return await self.process.wait()

    async def complaint(self) -> str:
        """All of stderr, once it has ended."""
        await self.ended()
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().removesuffix("\n"))
            self._more.set()
        self._more.set()


@asynccontextmanager
async def chatting(
    url: str, user: str, *arguments: str, directory: Path, password: str = PASSWORD
) -> AsyncIterator[Chatting]:
    """The password is read from a file in the directory."""
    file = directory / f"{user}.password"
    file.write_text(f"{password}\n")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.cli", "chat", "--url", url, "--user", user),
        *("--password-file", str(file), *arguments),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    one = Chatting(process)
    try:
        yield one
    finally:
        if process.returncode is None:
            process.kill()
        await one.ended()


class BadLine:
    """Breaks, once, when the bytes `before` are about to come back; and when something is said
    while it is `deaf`, which nobody hears."""

    def __init__(self, host: str, port: int, before: bytes | None) -> None:
        self.url = ""
        self.deaf = False
        self._host = host
        self._port = port
        self._before = before

    async def pass_on(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        server, requests = await asyncio.open_connection(self._host, self._port)
        ways = [
            asyncio.create_task(self._forth(client, requests)),
            asyncio.create_task(self._back(server, answers)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for end in (answers, requests):
            end.transport.abort()

    async def _forth(self, client: asyncio.StreamReader, requests: asyncio.StreamWriter) -> None:
        while data := await client.read(CHUNK_BYTES):
            if self.deaf:
                self.deaf = False
                return
            requests.write(data)

    async def _back(self, server: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        while data := await server.read(CHUNK_BYTES):
            if self._before is not None and self._before in data:
                self._before = None
                return
            answers.write(data)


@asynccontextmanager
async def bad_line(url: str, *, before: bytes | None = None) -> AsyncIterator[BadLine]:
    """A line to `url` with an address of its own."""
    line = BadLine(urlsplit(url).hostname or "", urlsplit(url).port or 0, before)
    async with await asyncio.start_server(line.pass_on, "127.0.0.1", 0) as server:
        line.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield line
