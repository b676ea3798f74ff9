"""The stream with the full system running: a thousand sockets in chats of 2, 10, 100 and 300.

They connect all at once; then 50 messages/s are sent over the sockets, by turns into chats of each
size, and every client acknowledges what it gets; then all are cut off and resume; then the rate
rises as long as p99 from send to receipt stays under a bound. Last, the same senders send as fast
as it goes, over HTTP and over sockets by turns. Baseline of the same run, before and after: a bare
WebSocket server on the same uvicorn that passes the same messages on to the same sockets.
"""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

import httpx
import msgspec
import psycopg

from tests.benchmarks import harness, http_send, system
from tests.benchmarks.harness import Report, at_least_times_baseline, below
from tests.benchmarks.stream_bare import Bare
from tests.benchmarks.stream_load import Cut, Drive, Open, Outcome, Phase, Saturate, Send
from tests.benchmarks.system import Running
from tests.benchmarks.workload import TEXTS

PEOPLE, QUICK_PEOPLE = 1_000, 40
CHAT_SIZES, QUICK_CHAT_SIZES = (2, 10, 100, 300), (2, 10, 20)
RATE = 50.0
SECONDS, QUICK_SECONDS = 60.0, 3.0
BASELINE_SECONDS, QUICK_BASELINE_SECONDS = 15.0, 1.0
P99_MS = 150.0
IDLE_SOCKET_KB = 60.0
BEHIND_SECONDS = 1.0
DELIVERED_SECONDS = 5.0
MISSED_MESSAGES = 200
RAMP_SECONDS = 12.0
RAMP_STEP = 1.25
MAX_RAMP_STEPS = 12
RAMP_P99_MS = 250.0
SENDERS = 64
PIPELINED = 8
SEND_ROUNDS, QUICK_SEND_ROUNDS = 3, 1
SEND_SECONDS, QUICK_SEND_SECONDS = 6.0, 1.0
HTTP_MESSAGES, QUICK_HTTP_MESSAGES = 6_000, 300
HTTP_AT_ONCE = 100_000.0  # a rate that nothing reaches: as fast as it goes
SOCKET_RATIO = 1.5
LIKE_THEM = f"1000000 {TEXTS[1]}"  # as long as what the sockets send
SETUP_TOGETHER = 16
SETUP_TIMEOUT_SECONDS = 60.0
SAMPLE_SECONDS = 0.25
SETTLE_TIMEOUT_SECONDS = 60.0
QUIET_SECONDS = 3.0
MAX_LINE_BYTES = 16 * 1024 * 1024
PHASE_TIMEOUT_SECONDS = 180.0
STOP_TIMEOUT_SECONDS = 30.0
TOKEN_HEAD = "Bearer "

BEHIND: LiteralString = """
    SELECT p.projection, extract(epoch FROM clock_timestamp() - e.recorded_at)::float8
    FROM projection_checkpoints AS p
    JOIN event_log AS e ON e.position = p.position + 1
"""

HEAD: LiteralString = """
    SELECT position
    FROM log_head
"""

SLOWEST: LiteralString = """
    SELECT min(position)
    FROM projection_checkpoints
"""

EVENTS: LiteralString = """
    SELECT type, count(*)
    FROM event_log
    WHERE position > %s
    GROUP BY type
"""

PENDING: LiteralString = """
    SELECT count(*)
    FROM message_delivery
    WHERE status = 'pending'
"""


class Crowd(NamedTuple):
    """`sends`: by turns into chats of each size, by all of their members."""

    tokens: list[str]
    members: dict[str, list[int]]
    sends: list[Send]


async def run(report: Report, *, is_quick: bool) -> None:
    people = QUICK_PEOPLE if is_quick else PEOPLE
    sizes = QUICK_CHAT_SIZES if is_quick else CHAT_SIZES
    async with system.up() as running:
        harness.note_server(report, running.database_url)
        crowd = await _crowd(running.api_url, people, sizes)
        await _settled(running)
        report.note(
            f"{people:,} people in {len(crowd.members)} chats of {', '.join(map(str, sizes))}"
        )
        await _whole(report, running, crowd, is_quick=is_quick)


async def _whole(report: Report, running: Running, crowd: Crowd, *, is_quick: bool) -> None:
    before = await _bare(crowd, is_quick)
    async with _generating() as generate:
        await _connect(report, running, crowd, generate)
        driven = await _headline(
            report, running, crowd, generate, seconds=QUICK_SECONDS if is_quick else SECONDS
        )
        after = await _bare(crowd, is_quick)
        _judge(report, driven, [before, after])
        await _resume(report, running, crowd, generate)
        if not is_quick:
            await _ramp(report, running, crowd, generate)
        await generate(Cut())
        await _settled(running)
        await _sending(report, running, crowd, generate, is_quick=is_quick)


# ------------------------------------------------------------------------------ connecting


async def _connect(
    report: Report, running: Running, crowd: Crowd, generate: Callable[[Phase], Any]
) -> None:
    """The API has served all that made the crowd: it is as large as it is without sockets."""
    await asyncio.sleep(QUIET_SECONDS)
    before = _resident_kb(running.pids["api"])
    opened = await generate(Open(running.api_url, crowd.tokens))
    _note_errors(report, opened)
    report.add(
        f"{len(crowd.tokens):,} sockets connect at once: all ready after", opened.ready_seconds, "s"
    )
    await _settled(running)
    await asyncio.sleep(QUIET_SECONDS)
    per_socket = (_resident_kb(running.pids["api"]) - before) / len(crowd.tokens)
    report.add("memory of an idle socket", per_socket, "kB", target=below(IDLE_SOCKET_KB))
    report.note(f"the API process: {before / 1000:.0f} MB without sockets")


async def _resume(
    report: Report, running: Running, crowd: Crowd, generate: Callable[[Phase], Any]
) -> None:
    """All are cut, miss messages in chats of each size, and come back at once."""
    position = (await generate(Drive([], RATE, 0))).position
    await _settled(running)
    await generate(Cut())
    async with httpx.AsyncClient(base_url=running.api_url, timeout=SETUP_TIMEOUT_SECONDS) as client:
        for send in crowd.sends[:MISSED_MESSAGES]:
            body = {"chat_id": send.chat_id, "content": "missed"}
            token = crowd.tokens[send.sender]
            await http_send.posted(client, "/v1/commands/send-message", body, token=token)
    missed = sum(send.recipients for send in crowd.sends[:MISSED_MESSAGES])
    opened = await generate(Open(running.api_url, crowd.tokens, after=position, missed=missed))
    _note_errors(report, opened)
    name = f"{len(crowd.tokens):,} sockets resume at once"
    report.add(f"{name}: all ready after", opened.ready_seconds, "s")
    report.add(f"{name}: {missed:,} missed messages there after", opened.seconds, "s")
    report.add(f"{name}: told to come again later", opened.refused, "")
    report.add(f"{name}: out of order or twice", opened.disordered, "", target=below(1))
    await _settled(running)


# -------------------------------------------------------------------------------- driving


async def _headline(
    report: Report,
    running: Running,
    crowd: Crowd,
    generate: Callable[[Phase], Any],
    *,
    seconds: float,
) -> Outcome:
    name = f"at {RATE:.0f}/s for {seconds:.0f} s"
    async with await psycopg.AsyncConnection.connect(
        running.database_url, autocommit=True
    ) as connection:
        head = await _number(connection, HEAD)
        used = system.used(running)
        sampling = asyncio.create_task(_sample(connection))
        driven: Outcome = await generate(Drive(crowd.sends, RATE, seconds))
        shares = _shares(used, system.used(running), driven)
        delivered_seconds = await _delivered(running)
        sampling.cancel()
        behind = await sampling
        events = dict(await (await connection.execute(EVENTS, (head,))).fetchall())
    _note_errors(report, driven)
    report.note(f"{name}: {_times(driven)}")
    report.note(
        f"{name}: {driven.frames:,} frames came to clients, {driven.acknowledged:,} "
        f"`received` went back"
    )
    report.note(f"{name}, processor: {shares}")
    report.note(f"{name}, longest behind: {_sorted(behind)} s")
    report.add(f"{name}: receipts missing", driven.missing, "", target=below(1))
    report.add(f"{name}: out of order or twice", driven.disordered, "", target=below(1))
    report.add(
        f"{name}: all marked delivered after",
        delivered_seconds,
        "s",
        target=below(DELIVERED_SECONDS),
    )
    report.add(
        f"{name}: read models behind, at most",
        max(behind.values(), default=0.0),
        "s",
        target=below(BEHIND_SECONDS),
    )
    report.add(
        f"{name}: delivery events per message", events["deliveries_recorded"] / driven.sent, ""
    )
    return driven


def _judge(report: Report, driven: Outcome, baselines: list[Outcome]) -> None:
    p50 = harness.mean([one.p50_ms for one in baselines])
    p99 = harness.mean([one.p99_ms for one in baselines])
    report.add(
        "from send to receipt, p50, beside a bare server's", driven.p50_ms, "ms", baseline=p50
    )
    report.add(
        "from send to receipt, p99, beside a bare server's",
        driven.p99_ms,
        "ms",
        baseline=p99,
        target=below(P99_MS),
    )
    for one in baselines:
        report.note(f"the bare server: {_times(one)}")


async def _ramp(
    report: Report, running: Running, crowd: Crowd, generate: Callable[[Phase], Any]
) -> None:
    best, rate = 0.0, RATE
    for _ in range(MAX_RAMP_STEPS):
        driven = await generate(Drive(crowd.sends, rate, RAMP_SECONDS))
        delivered_seconds = await _delivered(running)
        report.note(
            f"ramp at {rate:.0f}/s: {_times(driven)}; all delivered after {delivered_seconds:.1f} s"
        )
        if driven.p99_ms >= RAMP_P99_MS or driven.missing or driven.errors:
            _note_errors(report, driven)
            break
        best, rate = rate, rate * RAMP_STEP
    report.add(f"highest rate at which p99 stays under {RAMP_P99_MS:.0f} ms", best, "messages/s")


# -------------------------------------------------------------------------------- sending


class Way:
    """A way to send: its rates, and what a message took of the API's processor time."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.api_ms: list[float] = []

    @asynccontextmanager
    async def counted(self, running: Running) -> AsyncIterator[Callable[[int, float], None]]:
        """What is sent within, and until the read models have it."""
        before = system.used(running)["api"].processor_seconds
        counts: list[int] = []

        def count(messages: int, per_second: float) -> None:
            counts.append(messages)
            self.rates.append(per_second)

        yield count
        await _settled(running)
        spent = system.used(running)["api"].processor_seconds - before
        self.api_ms.append(1e3 * spent / sum(counts))


async def _sending(
    report: Report,
    running: Running,
    crowd: Crowd,
    generate: Callable[[Phase], Any],
    *,
    is_quick: bool,
) -> None:
    """Into chats of 2. The sockets do not start: HTTP's clients get no events either."""
    tokens = crowd.tokens[:SENDERS]
    sends = [send for send in crowd.sends if send.recipients == 2 and send.sender < len(tokens)]
    seconds = QUICK_SEND_SECONDS if is_quick else SEND_SECONDS
    messages = QUICK_HTTP_MESSAGES if is_quick else HTTP_MESSAGES
    requests = [http_send.request(tokens[send.sender], send.chat_id, LIKE_THEM) for send in sends]
    over_http, alone, pipelined = Way(), Way(), Way()
    for _ in range(QUICK_SEND_ROUNDS if is_quick else SEND_ROUNDS):
        async with over_http.counted(running) as count:
            http = await http_send.load(running, requests, HTTP_AT_ONCE, messages / HTTP_AT_ONCE)
            count(http.answered, http.per_second)
        for way, together in ((alone, 1), (pipelined, PIPELINED)):
            await generate(Open(running.api_url, tokens, starts=False))
            async with way.counted(running) as count:
                sent = await generate(Saturate(sends, together, seconds))
                _note_errors(report, sent)
                count(sent.sent, sent.sent / seconds)
            await generate(Cut())
    _compare(report, len(tokens), over_http, alone, pipelined)


def _compare(report: Report, senders: int, over_http: Way, alone: Way, pipelined: Way) -> None:
    base, base_ms = harness.mean(over_http.rates), harness.mean(over_http.api_ms)
    report.add(f"{senders} senders over HTTP, one request at a time each", base, "messages/s")
    for name, way in (("one", alone), (f"{PIPELINED}", pipelined)):
        target = at_least_times_baseline(SOCKET_RATIO) if way is pipelined else None
        report.add(
            f"over sockets, {name} at a time each, beside HTTP",
            harness.mean(way.rates),
            "messages/s",
            baseline=base,
            target=target,
        )
        report.add(
            f"over sockets, {name} at a time: the API's processor for a message, beside HTTP",
            harness.mean(way.api_ms),
            "ms",
            baseline=base_ms,
        )


# ------------------------------------------------------------------------ what is measured


async def _sample(connection: psycopg.AsyncConnection[Any]) -> dict[str, float]:
    """Until cancelled; how far each read model was behind, at most."""
    behind: dict[str, float] = {}
    try:
        while True:
            for name, seconds in await (await connection.execute(BEHIND)).fetchall():
                behind[name] = max(behind.get(name, 0.0), seconds)
            await asyncio.sleep(SAMPLE_SECONDS)
    except asyncio.CancelledError:
        return behind


async def _delivered(running: Running) -> float:
    """Seconds until no connected recipient's row is pending, in read models at the head."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with await psycopg.AsyncConnection.connect(
        running.database_url, autocommit=True
    ) as connection:
        while loop.time() - began < SETTLE_TIMEOUT_SECONDS:
            if await _number(connection, PENDING) == 0 and await _is_settled(connection):
                break
            await asyncio.sleep(SAMPLE_SECONDS / 5)
    return loop.time() - began


async def _settled(running: Running) -> None:
    async with (
        asyncio.timeout(SETTLE_TIMEOUT_SECONDS),
        await psycopg.AsyncConnection.connect(running.database_url, autocommit=True) as connection,
    ):
        while not await _is_settled(connection):
            await asyncio.sleep(SAMPLE_SECONDS)


async def _is_settled(connection: psycopg.AsyncConnection[Any]) -> bool:
    return await _number(connection, SLOWEST) >= await _number(connection, HEAD)


async def _number(connection: psycopg.AsyncConnection[Any], statement: LiteralString) -> int:
    row = await (await connection.execute(statement)).fetchone()
    assert row is not None
    return int(row[0])


def _resident_kb(pid: int) -> float:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1.024  # the kernel's kB are KiB


def _shares(before: dict[str, system.Used], after: dict[str, system.Used], driven: Outcome) -> str:
    shares = {
        name: (after[name].processor_seconds - before[name].processor_seconds) / driven.seconds
        for name in after
    }
    shares["load generator"] = driven.processor_seconds / driven.seconds
    return ", ".join(
        f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda item: -item[1])
    )


def _times(driven: Outcome) -> str:
    by_size = ", ".join(
        f"chats of {size} {p50:.1f}/{p99:.0f}/{longest:.0f}"
        for size, (p50, p99, longest) in driven.times_ms.items()
    )
    return (
        f"p50 {driven.p50_ms:.1f} ms, p99 {driven.p99_ms:.0f} ms, longest {driven.max_ms:.0f} ms "
        f"({by_size}); the sender's answer {driven.answered_p50_ms:.1f}/{driven.answered_p99_ms:.0f}"
    )


def _sorted(behind: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {seconds:.2f}"
        for name, seconds in sorted(behind.items(), key=lambda item: -item[1])
    )


def _note_errors(report: Report, outcome: Outcome) -> None:
    for error in outcome.errors:
        report.note(error)


# ------------------------------------------------------------------- processes and people


async def _bare(crowd: Crowd, is_quick: bool) -> Outcome:
    """The same messages to the same sockets, of a server that does nothing else."""
    members = {
        chat_id: [crowd.tokens[number] for number in numbers]
        for chat_id, numbers in crowd.members.items()
    }
    seconds = QUICK_BASELINE_SECONDS if is_quick else BASELINE_SECONDS
    async with _process("tests.benchmarks.stream_bare") as process, _generating() as generate:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(Bare(members)) + b"\n")
        port = int(await asyncio.wait_for(process.stdout.readline(), SETUP_TIMEOUT_SECONDS))
        await generate(Open(f"http://127.0.0.1:{port}", crowd.tokens))
        return await generate(Drive(crowd.sends, RATE, seconds))


@asynccontextmanager
async def _generating() -> AsyncIterator[Callable[[Phase], Any]]:
    """What runs a phase in a generator of its own."""
    async with _process("tests.benchmarks.stream_load") as process:
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
async def _process(module: str) -> AsyncIterator[asyncio.subprocess.Process]:
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


async def _crowd(url: str, count: int, sizes: tuple[int, ...]) -> Crowd:
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
