"""Readers, a process of their own: each asks one thing after the other on its own connection.

With a rate, each reader has its next time to ask, and what it takes counts from that time;
without one, it asks as soon as it has its answer, which shows what the server can do at most.
Each is a thread that blocks: an event loop's timer, and its turns over a page of 25 KiB, took a
millisecond that was not the server's.
Reads a `Plan` on stdin and answers a `Result` on stdout.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from urllib.parse import urlsplit

import msgspec

from tests.benchmarks.harness import percentile

HTTP_PORT = 80
TIMEOUT_SECONDS = 30.0
PROCESS_TIMEOUT_SECONDS = 120.0
MAX_ANSWER_BYTES = 1_000_000
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
    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answer = bytearray(MAX_ANSWER_BYTES)
        self.seconds: list[float] = []
        self.bytes = 0

    def run(self, requests: Iterator[bytes], due: float, every: float, until: float) -> None:
        while due < until:
            time.sleep(max(0.0, due - time.perf_counter()))
            self._ask(next(requests))
            now = time.perf_counter()
            self.seconds.append(now - due)
            due = due + every if every else now

    def _ask(self, request: bytes) -> None:
        self._socket.sendall(request)
        read_bytes, head_end = 0, -1
        while head_end < 0:
            read_bytes += self._read_from(read_bytes)
            head_end = self._answer.find(HEAD_END, 0, read_bytes)
        head = bytes(self._answer[:head_end])
        assert head[9:12] == b"200", head
        length = int(head.lower().partition(LENGTH)[2].partition(b"\r\n")[0])
        while read_bytes < head_end + len(HEAD_END) + length:
            read_bytes += self._read_from(read_bytes)
        self.bytes += length

    def _read_from(self, begin: int) -> int:
        read_bytes = self._socket.recv_into(memoryview(self._answer)[begin:])
        assert read_bytes, "the server has closed the connection"
        return read_bytes


async def apart(plan: Plan) -> Result:
    """What readers in a process of their own find."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.readers"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    given = msgspec.json.encode(plan)
    output, _ = await asyncio.wait_for(process.communicate(given), PROCESS_TIMEOUT_SECONDS)
    assert process.returncode == 0, "the readers failed; their errors are above"
    return msgspec.json.decode(output, type=Result)


def run(plan: Plan) -> Result:
    address = urlsplit(plan.url)
    assert address.hostname is not None
    readers = [Reader((address.hostname, address.port or HTTP_PORT)) for _ in plan.requests]
    every = len(readers) / plan.per_second if plan.per_second else 0.0
    began = time.perf_counter()
    with ThreadPoolExecutor(len(readers)) as threads:
        running = [
            # Not all of them at once, again and again.
            threads.submit(
                reader.run,
                cycle([request.encode() for request in requests]),
                began + n * every / len(readers),
                every,
                began + plan.seconds,
            )
            for n, (reader, requests) in enumerate(zip(readers, plan.requests, strict=True))
        ]
    for one in running:
        one.result()
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
    sys.stdout.buffer.write(msgspec.json.encode(run(given)))
