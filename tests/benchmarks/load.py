"""The load generator, a process of its own: a fixed rate over kept-alive connections.

Open loop: every request has its time, and what it took counts from that time, so a server
that stalls pays for all that came meanwhile. Reads a `Plan` on stdin's first line and answers a
`Result` on stdout. The client knows as much of HTTP/1.1 as it takes: whole responses with a length.
"""

import asyncio
import sys
import threading
import time
from collections import Counter, deque
from itertools import cycle
from typing import cast
from urllib.parse import urlsplit

import msgspec
import uvloop

from tests.benchmarks.harness import percentile

CONNECTIONS = 64
HTTP_PORT = 80
TICK_SECONDS = 0.001
DRAIN_TIMEOUT_SECONDS = 60.0
CONNECT_TIMEOUT_SECONDS = 10.0
STATUS_POLL_SECONDS = 0.01
MAX_ERRORS_KEPT = 3
STATUS = b"GET /v1/status HTTP/1.1\r\nHost: bench\r\n\r\n"


class Plan(msgspec.Struct, frozen=True):
    """Requests in the order they go out, again and again; heads and bodies are whole.

    `until_told`: no longer than until stdin ends.
    """

    url: str
    requests: list[str]
    per_second: float
    seconds: float
    until_told: bool = False


class Result(msgspec.Struct, frozen=True):
    """`settle_seconds`: from the last answer until all read models were at the head."""

    answered: int
    per_second: float
    statuses: dict[int, int]
    errors: list[str]
    p50_ms: float
    p99_ms: float
    max_ms: float
    settle_seconds: float
    processor_seconds: float

    @property
    def failures(self) -> int:
        return self.answered - self.statuses.get(200, 0) + len(self.errors)


class _Projection(msgspec.Struct):
    position: int


class _Status(msgspec.Struct):
    position: int
    projections: list[_Projection]


class Connection(asyncio.Protocol):
    """One request at a time; `done` is told the status and the body of each response."""

    def __init__(self, generator: "Generator") -> None:
        self._generator = generator
        self._buffer = b""
        self.due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not one by type

    def ask(self, request: bytes, due: float) -> None:
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        length_at = head.index(b"content-length:") + 15
        length = int(head[length_at:].split(b"\r\n", 1)[0])
        if len(self._buffer) < head_end + 4 + length:
            return
        body, self._buffer = self._buffer[head_end + 4 :], b""
        self._generator.answered(self, int(head[9:12]), body)

    def connection_lost(self, error: Exception | None) -> None:
        self._generator.lost(error)


class Generator:
    """Sends what is due as soon as a connection is free."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._idle: deque[Connection] = deque()
        self._waiting: deque[tuple[bytes, float]] = deque()
        self._times: list[float] = []
        self._statuses: Counter[int] = Counter()
        self._errors: list[str] = []
        self._status: asyncio.Future[bytes] | None = None
        self._is_closing = False
        self._is_told = threading.Event()
        self._last_answer = 0.0

    async def run(self) -> Result:
        await self._connect()
        if self._plan.until_told:
            threading.Thread(target=self._hear, daemon=True).start()
        began = time.perf_counter()
        count = await self._send(began)
        async with asyncio.timeout(DRAIN_TIMEOUT_SECONDS):
            while len(self._times) < count:
                await asyncio.sleep(TICK_SECONDS)
            settled = await self._settled()
        self._is_closing = True
        return Result(
            answered=len(self._times),
            per_second=len(self._times) / (self._last_answer - began),
            statuses=dict(self._statuses),
            errors=self._errors[:MAX_ERRORS_KEPT],
            p50_ms=percentile(self._times, 0.5) * 1e3,
            p99_ms=percentile(self._times, 0.99) * 1e3,
            max_ms=max(self._times) * 1e3,
            settle_seconds=settled - self._last_answer,
            processor_seconds=time.process_time(),
        )

    def answered(self, connection: Connection, status: int, body: bytes) -> None:
        if self._status is not None:
            self._status.set_result(body)
            return
        self._last_answer = time.perf_counter()
        self._times.append(self._last_answer - connection.due)
        self._statuses[status] += 1
        if status != 200 and len(self._errors) < MAX_ERRORS_KEPT:
            self._errors.append(body.decode())
        if self._waiting:
            connection.ask(*self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, error: Exception | None) -> None:
        if not self._is_closing:
            self._errors.append(f"a connection ended: {error}")

    def _hear(self) -> None:
        sys.stdin.buffer.read()
        self._is_told.set()

    async def _connect(self) -> None:
        address = urlsplit(self._plan.url)
        port = address.port or HTTP_PORT
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            _, connection = await asyncio.wait_for(
                loop.create_connection(lambda: Connection(self), address.hostname or "", port),
                CONNECT_TIMEOUT_SECONDS,
            )
            self._idle.append(connection)

    async def _send(self, began: float) -> int:
        """How many were sent; ends when the last one's time has come."""
        requests = cycle([request.encode() for request in self._plan.requests])
        interval = 1 / self._plan.per_second
        count = int(self._plan.seconds * self._plan.per_second)
        sent = 0
        while sent < count and not self._is_told.is_set():
            now = time.perf_counter()
            while sent < count and began + sent * interval <= now:
                self._ask(next(requests), began + sent * interval)
                sent += 1
            await asyncio.sleep(TICK_SECONDS)
        return sent

    def _ask(self, request: bytes, due: float) -> None:
        if self._idle:
            self._idle.popleft().ask(request, due)
        else:
            self._waiting.append((request, due))

    async def _settled(self) -> float:
        """When every read model was at the head."""
        while True:
            self._status = asyncio.get_running_loop().create_future()
            self._idle[0].ask(STATUS, 0.0)
            status = msgspec.json.decode(await self._status, type=_Status)
            if all(item.position >= status.position for item in status.projections):
                return time.perf_counter()
            await asyncio.sleep(STATUS_POLL_SECONDS)


if __name__ == "__main__":
    given = msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(Generator(given).run())))
