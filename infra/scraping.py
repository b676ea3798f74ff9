"""Metrics over HTTP, for processes that serve nothing else; and those of several as one page.

`served` answers `GET /metrics` on the process's own address (`MESSENGER_METRICS_ADDRESS`), in a few
lines of HTTP/1.1: daemons stay small. `gathered` asks all of a list for theirs and puts them
together, each line with the process's name; who does not answer in time is `messenger_process_up` 0.
"""

import asyncio
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from infra.errors import Unavailable

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PATH = b"/metrics"
# Longer than an API process takes for its own when the database and NATS are away.
ANSWER_SECONDS = 5.0
REQUEST_SECONDS = 10.0
MAX_REQUEST_BYTES = 8 * 1024
MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_CONNECTIONS = 16
GIVEN = "fd:"
UP = "messenger_process_up"

Render = Callable[[], Awaitable[bytes]]


class Peer(NamedTuple):
    name: str
    host: str
    port: int


@asynccontextmanager
async def served(address: str | None, render: Render) -> AsyncIterator[None]:
    """At HOST:PORT, or on a listening socket that is given as fd:NUMBER; nowhere if None.

    Raises Unavailable if somebody else is there.
    """
    if address is None:
        yield
        return
    listener = _listener(address)
    server = await asyncio.start_server(
        _Answering(render).answer, sock=listener, limit=MAX_REQUEST_BYTES
    )
    async with server:
        yield


def _listener(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        if address.startswith(GIVEN):
            return socket.socket(fileno=int(port))
        family, _, _, _, where = socket.getaddrinfo(host.strip("[]"), port)[0]
        return socket.create_server(where[:2], family=family)
    except OSError as error:
        reason = error.strerror or "can't be used"
        raise Unavailable(f"MESSENGER_METRICS_ADDRESS={address}: {reason}") from None


class _Answering:
    """One request a connection, and not too many at once."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._open = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                if self._open <= MAX_CONNECTIONS:
                    writer.write(await self._answered(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked does not wait for it any more
        finally:
            self._open -= 1
            writer.close()

    async def _answered(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b" ")
        if method not in (b"GET", b"HEAD") or rest.partition(b" ")[0].partition(b"?")[0] != PATH:
            return _response("404 Not Found", b"")
        body = await self._render()
        return _response("200 OK", body, is_head=method == b"HEAD")


def _response(status: str, body: bytes, *, is_head: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: {METRICS_TYPE}\r\ncontent-length: {len(body)}\r\n"
        "cache-control: no-store\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if is_head else body)


def peers(text: str) -> list[Peer]:
    """Of the setting's text, which was looked at."""
    found = []
    for one in text.split(","):
        name, _, address = one.partition("=")
        host, _, port = address.rpartition(":")
        found.append(Peer(name, host.strip("[]"), int(port)))
    return found


async def gathered(of: Sequence[Peer]) -> bytes:
    """Never fails: it is looked at when something else does."""
    answers = await asyncio.gather(*(_asked(peer) for peer in of))
    families = _Families()
    families.head(UP, f"# HELP {UP} Whether the process answered this scrape\n# TYPE {UP} gauge\n")
    for peer, answer in zip(of, answers, strict=True):
        families.add_sample(UP, peer.name, f"{UP} {int(answer is not None)}")
        families.add(peer.name, answer or "")
    return families.text().encode()


async def _asked(peer: Peer) -> str | None:
    request = f"GET /metrics HTTP/1.1\r\nhost: {peer.host}:{peer.port}\r\n\r\n"
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(peer.host, peer.port)
            try:
                writer.write(request.encode())
                answer = await _read(reader)
            finally:
                writer.close()
    except (TimeoutError, OSError):
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    return body.decode() if head.startswith(b"HTTP/1.1 200 ") else None


async def _read(reader: asyncio.StreamReader) -> bytes:
    """To its end, or as much as may be."""
    read, pieces = 0, []
    while read < MAX_ANSWER_BYTES and (piece := await reader.read(65_536)):
        pieces.append(piece)
        read += len(piece)
    return b"".join(pieces)


class _Families:
    """Lines of several texts by metric, as the format wants them: each metric once, in one piece."""

    def __init__(self) -> None:
        self._heads: dict[str, str] = {}
        self._samples: defaultdict[str, list[str]] = defaultdict(list)

    def head(self, family: str, lines: str) -> None:
        self._heads.setdefault(family, lines)

    def add(self, process: str, text: str) -> None:
        # As prometheus_client writes it: a metric begins with its help.
        for block in f"\n{text}".split("\n# HELP ")[1:]:
            family = block.partition(" ")[0]
            lines = block.splitlines()
            self.head(family, f"# HELP {lines[0]}\n{lines[1]}\n")
            for line in lines[2:]:
                self.add_sample(family, process, line)

    def add_sample(self, family: str, process: str, line: str) -> None:
        name, brace, rest = line.partition("{")
        if brace:
            labelled = f'{name}{{process="{process}",{rest}'
        else:
            name, _, value = line.partition(" ")
            labelled = f'{name}{{process="{process}"}} {value}'
        self._samples[family].append(labelled)

    def text(self) -> str:
        return "".join(
            head + "".join(f"{line}\n" for line in self._samples[family])
            for family, head in self._heads.items()
        )
