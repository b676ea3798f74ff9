"""The stream with the full system running: a thousand sockets in chats of 2, 10, 100 and 300.

They connect all at once; then 50 messages/s are sent over the sockets, by turns into chats of each
size, and every client acknowledges what it gets; then all are cut off and resume; then the rate
rises as long as p99 from send to receipt stays under a bound. Baseline of the same run, before and
after: a bare WebSocket server on the same uvicorn that passes the same messages on to the same
sockets.
"""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, LiteralString

import httpx
import msgspec
import psycopg

from tests.benchmarks import harness, http_send, system
from tests.benchmarks.crowd import (
    HEAD,
    SETTLE_TIMEOUT_SECONDS,
    SETUP_TIMEOUT_SECONDS,
    Crowd,
    gathered,
    generating,
    is_settled,
    note_errors,
    number_of,
    process_of,
    settled,
)
from tests.benchmarks.harness import Report, below
from tests.benchmarks.stream_bare import Bare
from tests.benchmarks.stream_load import Cut, Drive, Open, Outcome, Phase
from tests.benchmarks.system import Running

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
SAMPLE_SECONDS = 0.25
QUIET_SECONDS = 3.0
TOKEN_HEAD = "Bearer "

BEHIND: LiteralString = """
    SELECT p.projection, extract(epoch FROM clock_timestamp() - e.recorded_at)::float8
    FROM projection_checkpoints AS p
    JOIN event_log AS e ON e.position = p.position + 1
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


async def run(report: Report, *, is_quick: bool) -> None:
    people = QUICK_PEOPLE if is_quick else PEOPLE
    sizes = QUICK_CHAT_SIZES if is_quick else CHAT_SIZES
    async with system.up() as running:
        harness.note_server(report, running.database_url)
        crowd = await gathered(running.api_url, people, sizes)
        await settled(running)
        report.note(
            f"{people:,} people in {len(crowd.members)} chats of {', '.join(map(str, sizes))}"
        )
        await _whole(report, running, crowd, is_quick=is_quick)


async def _whole(report: Report, running: Running, crowd: Crowd, *, is_quick: bool) -> None:
    before = await _bare(crowd, is_quick)
    async with generating() as generate:
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


# ------------------------------------------------------------------------------ connecting


async def _connect(
    report: Report, running: Running, crowd: Crowd, generate: Callable[[Phase], Any]
) -> None:
    """The API has served all that made the crowd: it is as large as it is without sockets."""
    await asyncio.sleep(QUIET_SECONDS)
    before = _resident_kb(running.pids["api"])
    opened = await generate(Open(running.api_url, crowd.tokens))
    note_errors(report, opened)
    report.add(
        f"{len(crowd.tokens):,} sockets connect at once: all ready after", opened.ready_seconds, "s"
    )
    await settled(running)
    await asyncio.sleep(QUIET_SECONDS)
    per_socket = (_resident_kb(running.pids["api"]) - before) / len(crowd.tokens)
    report.add("memory of an idle socket", per_socket, "kB", target=below(IDLE_SOCKET_KB))
    report.note(f"the API process: {before / 1000:.0f} MB without sockets")


async def _resume(
    report: Report, running: Running, crowd: Crowd, generate: Callable[[Phase], Any]
) -> None:
    """All are cut, miss messages in chats of each size, and come back at once."""
    position = (await generate(Drive([], RATE, 0))).position
    await settled(running)
    await generate(Cut())
    async with httpx.AsyncClient(base_url=running.api_url, timeout=SETUP_TIMEOUT_SECONDS) as client:
        for send in crowd.sends[:MISSED_MESSAGES]:
            body = {"chat_id": send.chat_id, "content": "missed"}
            token = crowd.tokens[send.sender]
            await http_send.posted(client, "/v1/commands/send-message", body, token=token)
    missed = sum(send.recipients for send in crowd.sends[:MISSED_MESSAGES])
    opened = await generate(Open(running.api_url, crowd.tokens, after=position, missed=missed))
    note_errors(report, opened)
    name = f"{len(crowd.tokens):,} sockets resume at once"
    report.add(f"{name}: all ready after", opened.ready_seconds, "s")
    report.add(f"{name}: {missed:,} missed messages there after", opened.seconds, "s")
    report.add(f"{name}: told to come again later", opened.refused, "")
    report.add(f"{name}: out of order or twice", opened.disordered, "", target=below(1))
    await settled(running)


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
        head = await number_of(connection, HEAD)
        used = system.used(running)
        sampling = asyncio.create_task(_sample(connection))
        driven: Outcome = await generate(Drive(crowd.sends, RATE, seconds))
        shares = _shares(used, system.used(running), driven)
        delivered_seconds = await _delivered(running)
        sampling.cancel()
        behind = await sampling
        events = dict(await (await connection.execute(EVENTS, (head,))).fetchall())
    note_errors(report, driven)
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
            note_errors(report, driven)
            break
        best, rate = rate, rate * RAMP_STEP
    report.add(f"highest rate at which p99 stays under {RAMP_P99_MS:.0f} ms", best, "messages/s")


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
            if await number_of(connection, PENDING) == 0 and await is_settled(connection):
                break
            await asyncio.sleep(SAMPLE_SECONDS / 5)
    return loop.time() - began


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


# ------------------------------------------------------------------- processes and people


async def _bare(crowd: Crowd, is_quick: bool) -> Outcome:
    """The same messages to the same sockets, of a server that does nothing else."""
    members = {
        chat_id: [crowd.tokens[number] for number in numbers]
        for chat_id, numbers in crowd.members.items()
    }
    seconds = QUICK_BASELINE_SECONDS if is_quick else BASELINE_SECONDS
    async with process_of("tests.benchmarks.stream_bare") as process, generating() as generate:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(Bare(members)) + b"\n")
        port = int(await asyncio.wait_for(process.stdout.readline(), SETUP_TIMEOUT_SECONDS))
        await generate(Open(f"http://127.0.0.1:{port}", crowd.tokens))
        return await generate(Drive(crowd.sends, RATE, seconds))
