"""Readers, a process of their own: each asks one thing after the other on its own connection.

With a rate, each reader has its next time to ask, and what it takes counts from that time;
without one, it asks as soon as it has its answer, which shows what the server can do at most.
Reads a `Plan` on stdin and answers a `Result` on stdout.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from urllib.parse import urlsplit

import msgspec
import uvloop

from tests.benchmarks.harness import percentile

HTTP_PORT = 80
TIMEOUT_SECONDS = 30.0
HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"


class Plan(msgspec.Struct, frozen=True):
    """Whole requests by reader, again and again; a rate of 0 is as fast as it goes."""

    url: str
    requests: list[list[str]]
    per_second: float
    seconds: float


class Result(msgspec.Struct, frozen=True):
    answered: int
    per_second: float
    p50_ms: float
    p99_ms: float
    mean_bytes: float


class Reader:
    def __init__(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self._reader, self._writer = streams
        self.seconds: list[float] = []
        self.bytes = 0

    async def run(self, requests: Iterator[bytes], *, every: float, until: float) -> None:
        due = time.perf_counter()
        while due < until:
            await asyncio.sleep(due - time.perf_counter())
            await self._ask(next(requests))
            now = time.perf_counter()
            self.seconds.append(now - due)
            due = due + every if every else now

    async def _ask(self, request: bytes) -> None:
        self._writer.write(request)
        head = await asyncio.wait_for(self._reader.readuntil(HEAD_END), TIMEOUT_SECONDS)
        length_at = head.lower().index(LENGTH) + len(LENGTH)
        length = int(head[length_at:].split(b"\r\n", 1)[0])
        body = await self._reader.readexactly(length)
        assert head[9:12] == b"200", body
        self.bytes += length


async def run(plan: Plan) -> Result:
    address = urlsplit(plan.url)
    readers = [
        Reader(await asyncio.open_connection(address.hostname, address.port or HTTP_PORT))
        for _ in plan.requests
    ]
    every = len(readers) / plan.per_second if plan.per_second else 0.0
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for n, (reader, requests) in enumerate(zip(readers, plan.requests, strict=True)):
            # Not all of them at once, again and again.
            await asyncio.sleep(every / len(readers) if n else 0)
            encoded = cycle([request.encode() for request in requests])
            group.create_task(reader.run(encoded, every=every, until=began + plan.seconds))
    taken = [seconds for reader in readers for seconds in reader.seconds]
    return Result(
        answered=len(taken),
        per_second=len(taken) / (time.perf_counter() - began),
        p50_ms=percentile(taken, 0.5) * 1e3,
        p99_ms=percentile(taken, 0.99) * 1e3,
        mean_bytes=sum(reader.bytes for reader in readers) / len(taken),
    )


if __name__ == "__main__":
    given = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(run(given))))
