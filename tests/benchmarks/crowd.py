"""People in chats of several sizes, and the process that plays all of them on the stream."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, LiteralString, NamedTuple

import httpx
import msgspec
import psycopg

from tests.benchmarks import http_send
from tests.benchmarks.harness import Report
from tests.benchmarks.stream_load import Outcome, Phase, Send
from tests.benchmarks.system import Running

SETUP_TOGETHER = 16
SETUP_TIMEOUT_SECONDS = 60.0
SETTLE_POLL_SECONDS = 0.25
SETTLE_TIMEOUT_SECONDS = 60.0
MAX_LINE_BYTES = 16 * 1024 * 1024
PHASE_TIMEOUT_SECONDS = 180.0
STOP_TIMEOUT_SECONDS = 30.0

HEAD: LiteralString = """
    SELECT position
    FROM log_head
"""

SLOWEST: LiteralString = """
    SELECT min(position)
    FROM projection_checkpoints
"""


class Crowd(NamedTuple):
    """`sends`: by turns into chats of each size, by all of their members."""

    tokens: list[str]
    members: dict[str, list[int]]
    sends: list[Send]


async def gathered(url: str, count: int, sizes: tuple[int, ...]) -> Crowd:
    """Each person is in one chat of each size, as far as they go round."""
    slots = asyncio.Semaphore(SETUP_TOGETHER)
    async with httpx.AsyncClient(base_url=url, timeout=SETUP_TIMEOUT_SECONDS) as client:

        async def one(number: int) -> tuple[str, str]:
            async with slots:
                return await http_send.person(client, number)

        async def chat(begin: int, size: int) -> tuple[str, list[int]]:
            async with slots:
                seats = await http_send.group(client, people[begin : begin + size])
                return seats[0][1], list(range(begin, begin + size))

        people = await asyncio.gather(*map(one, range(count)))
        by_size = [
            await asyncio.gather(*(chat(begin, size) for begin in range(0, count - size + 1, size)))
            for size in sizes
        ]
    return Crowd(
        [token for _, token in people],
        {chat_id: numbers for chats in by_size for chat_id, numbers in chats},
        _in_turn(by_size, count),
    )


def _in_turn(by_size: list[list[tuple[str, list[int]]]], count: int) -> list[Send]:
    """As many of each size; in each chat its members one after the other."""
    sends = []
    for turn in range(count):
        for chats in by_size:
            chat_id, numbers = chats[turn % len(chats)]
            sender = numbers[turn // len(chats) % len(numbers)]
            sends.append(Send(sender, chat_id, len(numbers)))
    return sends


@asynccontextmanager
async def generating() -> AsyncIterator[Callable[[Phase], Any]]:
    """What runs a phase in a generator of its own."""
    async with process_of("tests.benchmarks.stream_load") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        async def generate(phase: Phase) -> Outcome:
            stdin.write(msgspec.json.encode(phase) + b"\n")
            line = await asyncio.wait_for(stdout.readline(), PHASE_TIMEOUT_SECONDS)
            assert line, "the load generator failed; its errors are above"
            return msgspec.json.decode(line, type=Outcome)

        yield generate


@asynccontextmanager
async def process_of(module: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_SECONDS)


async def settled(running: Running) -> None:
    async with (
        asyncio.timeout(SETTLE_TIMEOUT_SECONDS),
        await psycopg.AsyncConnection.connect(running.database_url, autocommit=True) as connection,
    ):
        while not await is_settled(connection):
            await asyncio.sleep(SETTLE_POLL_SECONDS)


async def is_settled(connection: psycopg.AsyncConnection[Any]) -> bool:
    return await number_of(connection, SLOWEST) >= await number_of(connection, HEAD)


async def number_of(connection: psycopg.AsyncConnection[Any], statement: LiteralString) -> int:
    row = await (await connection.execute(statement)).fetchone()
    assert row is not None
    return int(row[0])


def note_errors(report: Report, outcome: Outcome) -> None:
    for error in outcome.errors:
        report.note(error)
