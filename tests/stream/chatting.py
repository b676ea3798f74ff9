"""`messenger chat` as people without a terminal have it: a real process on two pipes.

`cut_once` is a bad line to the server: it breaks, once, before a certain word comes through.
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


@asynccontextmanager
async def cut_once(url: str, *, before: bytes) -> AsyncIterator[str]:
    """The address of a line to `url`, which is cut when these bytes are about to come back."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    is_whole = True

    async def pass_on(client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        server, requests = await asyncio.open_connection(host, port)
        forth = asyncio.create_task(_copy(client, requests))
        nonlocal is_whole
        while data := await server.read(CHUNK_BYTES):
            if is_whole and before in data:
                is_whole = False
                break
            answers.write(data)
        forth.cancel()
        for end in (answers, requests):
            end.transport.abort()

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as line:
        yield f"http://127.0.0.1:{line.sockets[0].getsockname()[1]}"


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
    writer.close()
