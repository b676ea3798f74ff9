"""All read models rebuilt, one after the other, while messages arrive and readers query.

The whole system runs; a history is there; messages come at a fixed rate over HTTP. Readers ask at
a fixed rate for what every read model is in, and know what has to be in the answers. First without
a replay, then with `messenger replay --all`: the first is the baseline of the second. A read counts
to where it was due. How long a swap took is what the replay says; beside it stands the longest
read that was under way near a swap, and how long who had just written waited for a read model
near one. Then nothing more comes, and `messenger verify` compares every row.
"""

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import msgspec

from domain.ids import ChatId, UserId
from tests.benchmarks import crowd, harness, http_send, replay_readers, system, workload
from tests.benchmarks.harness import Report, at_least, below, below_times_baseline, percentile
from tests.benchmarks.load import Plan as LoadPlan
from tests.benchmarks.load import Result as LoadResult
from tests.benchmarks.replay_readers import OWN, Chat, Plan, Read, Result
from tests.benchmarks.system import Running
from tests.infra import machines

RATE = 200
READERS = 8
READS_PER_SECOND = 80.0
USERS = 200
CHAT_SIZES = (2, 10)
HISTORY, QUICK_HISTORY = 60_000, 1_000
TOGETHER = 64
CHAT_MESSAGES = 60
WARM_UP_SECONDS, QUICK_WARM_UP_SECONDS = 8.0, 1.0
BEFORE_SECONDS, QUICK_BEFORE_SECONDS = 30.0, 2.0
AFTER_SECONDS = 1.0
P99_RATIO = 2.0
SWAP_MS = 100.0
SUSTAINED = 0.98  # of the rate asked for
NEAR_SECONDS = 0.5
SETUP_TIMEOUT_SECONDS = 60.0
REPLAY_TIMEOUT_SECONDS = 1_200.0
STOP_TIMEOUT_SECONDS = 90.0
SWAPPED = re.compile(r"(\w+): rebuilt up to (\d+), swapped in (\d+) ms")


class Swap(NamedTuple):
    name: str
    at: float
    milliseconds: float


async def run(report: Report, *, is_quick: bool) -> None:
    async with system.up() as running:
        harness.note_server(report, running.database_url)
        chats, sends = await _history(report, running, is_quick=is_quick)
        async with _clients(running, chats, sends) as results:
            await asyncio.sleep(QUICK_WARM_UP_SECONDS if is_quick else WARM_UP_SECONDS)
            warm = time.monotonic()
            await asyncio.sleep(QUICK_BEFORE_SECONDS if is_quick else BEFORE_SECONDS)
            began = time.monotonic()
            swaps = await _replay(running)
            ended = time.monotonic()
            await asyncio.sleep(AFTER_SECONDS)
        sent, read = results
        _tell(report, sent, read)
        before = [one for one in read.reads if warm <= one.at < began]
        during = [one for one in read.reads if began <= one.at < ended]
        report.note(
            f"{len(before)} reads in {began - warm:.0f} s, then {len(during)} while all read models "
            f"were rebuilt, {len(swaps)} swaps in {ended - began:.0f} s"
        )
        _compare(report, before, during)
        _tell_swaps(report, swaps, before, during)
        await _verify(report, running)


def _tell(report: Report, sent: LoadResult, read: Result) -> None:
    report.add("sent", sent.per_second, "messages/s", target=at_least(SUSTAINED * RATE))
    report.add("messages not acknowledged", sent.failures, "", target=below(1))
    report.add("reads that failed", read.failed, "", target=below(1))
    report.add("half answers", read.half, "", target=below(1))
    for text in [*sent.errors, *read.told]:
        report.note(text)


def _compare(report: Report, before: list[Read], during: list[Read]) -> None:
    for is_own, name in ((False, "reads"), (True, f"reads of one's {OWN}")):
        pair = [_ms(reads, own=is_own) for reads in (before, during)]
        for share in (0.5, 0.99):
            base, value = (percentile(milliseconds, share) for milliseconds in pair)
            target = below_times_baseline(P99_RATIO) if share > 0.5 else None
            report.add(
                f"{name}, p{share * 100:.0f}, while rebuilding",
                value,
                "ms",
                baseline=base,
                target=target,
            )
    for kind in replay_readers.KINDS:
        base, value = (
            percentile([1e3 * one.seconds for one in reads if one.kind == kind], 0.99)
            for reads in (before, during)
        )
        report.add(f"{kind}, p99, while rebuilding", value, "ms", baseline=base)


def _tell_swaps(report: Report, swaps: list[Swap], before: list[Read], during: list[Read]) -> None:
    worst = max(swap.milliseconds for swap in swaps)
    report.add(f"longest of {len(swaps)} swaps", worst, "ms", target=below(SWAP_MS))
    report.note("swaps: " + ", ".join(f"{one.name} {one.milliseconds:.0f} ms" for one in swaps))
    near = [one for one in during if any(_is_near(one, swap) for swap in swaps)]
    for own, name in ((False, "read"), (True, f"read of one's {OWN}")):
        report.add(
            f"longest {name} within {NEAR_SECONDS} s of a swap",
            max(_ms(near, own=own), default=0.0),
            "ms",
            baseline=max(_ms(before, own=own)),
        )


def _is_near(read: Read, swap: Swap) -> bool:
    return read.at < swap.at + NEAR_SECONDS and read.at + read.seconds > swap.at - NEAR_SECONDS


def _ms(reads: Sequence[Read], *, own: bool) -> list[float]:
    return [1e3 * one.seconds for one in reads if (one.kind == OWN) == own]


# ------------------------------------------------------------------------------ the commands


async def _replay(running: Running) -> list[Swap]:
    """Each swap as it is told."""
    swaps = []
    async with asyncio.timeout(REPLAY_TIMEOUT_SECONDS), _command(running, "replay", "--all") as one:
        assert one.stdout is not None
        async for line in one.stdout:
            if found := SWAPPED.match(line.decode()):
                swaps.append(Swap(found[1], time.monotonic(), float(found[3])))
    assert one.returncode == 0, "`messenger replay` failed; its errors are above"
    return swaps


async def _verify(report: Report, running: Running) -> None:
    await crowd.settled(running)
    async with (
        asyncio.timeout(REPLAY_TIMEOUT_SECONDS),
        _command(running, "verify") as process,
    ):
        out, _ = await process.communicate()
    lines = out.decode().splitlines()
    differing = sum(not line.endswith(": equal") for line in lines)
    report.add("read models that `verify` finds to differ", differing, "", target=below(1))
    rows = sum(int(line.split()[1]) for line in lines)
    report.note(
        f"`verify`, exit code {process.returncode}: {len(lines)} read models, {rows:,} rows"
    )


@asynccontextmanager
async def _command(running: Running, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=None,
        env={**system.plain_environ(), "MESSENGER_DATA_DIR": running.data_dir},
    )
    try:
        yield process
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


# -------------------------------------------------------------------------------- the clients


@asynccontextmanager
async def _clients(
    running: Running, chats: list[Chat], sends: list[str]
) -> AsyncIterator[list[Any]]:
    """Senders and readers while the block runs; then there is what they found."""
    found: list[Any] = []
    load = LoadPlan(running.api_url, sends, RATE, REPLAY_TIMEOUT_SECONDS, until_told=True)
    read = Plan(running.api_url, chats, READS_PER_SECOND)
    async with (
        crowd.process_of("tests.benchmarks.load") as sending,
        crowd.process_of("tests.benchmarks.replay_readers") as reading,
    ):
        for process, plan in ((sending, load), (reading, read)):
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(plan) + b"\n")
            await process.stdin.drain()
        yield found
        for process, kind in ((reading, Result), (sending, LoadResult)):
            output, _ = await asyncio.wait_for(process.communicate(b""), STOP_TIMEOUT_SECONDS)
            assert process.returncode == 0, "the clients failed; their errors are above"
            found.insert(0, msgspec.json.decode(output, type=kind))


async def _history(
    report: Report, running: Running, *, is_quick: bool
) -> tuple[list[Chat], list[str]]:
    """The readers' chats, and the requests of those who send."""
    count = QUICK_HISTORY if is_quick else HISTORY
    async with httpx.AsyncClient(base_url=running.api_url, timeout=SETUP_TIMEOUT_SECONDS) as client:
        chats = [await _chat(client, 2 * n + USERS) for n in range(READERS)]
        people = [await http_send.person(client, number) for number in range(USERS)]
        seats, sends = [], []
        for size in CHAT_SIZES:
            for begin in range(0, USERS, size):
                members = people[begin : begin + size]
                for (user_id, _), (token, chat_id) in zip(
                    members, await http_send.group(client, members), strict=True
                ):
                    text = workload.TEXTS[len(sends) % len(workload.TEXTS)]
                    seats.append(workload.Seat(ChatId(chat_id), UserId(user_id)))
                    sends.append(http_send.request(token, chat_id, text))
    async with machines.running(running.database_url) as machine:
        await workload.send(machine, seats, count, together=TOGETHER)
    await crowd.settled(running)
    report.note(
        f"history: {count:,} messages in {len({seat.chat_id for seat in seats})} chats of "
        f"{' and '.join(map(str, CHAT_SIZES))}; {RATE}/s more, {READERS} readers at "
        f"{READS_PER_SECOND:.0f}/s together"
    )
    return chats, sends


async def _chat(client: httpx.AsyncClient, number: int) -> Chat:
    (sender_id, token), (peer_id, peer_token) = [
        await http_send.person(client, number + n) for n in range(2)
    ]

    async def command(name: str, body: dict[str, Any], by: str) -> dict[str, Any]:
        return await http_send.posted(client, f"/v1/commands/{name}", body, token=by)

    await command("request-contact", {"user_id": peer_id}, token)
    await command("accept-contact", {"user_id": sender_id}, peer_token)
    opened = await command("open-direct-chat", {"user_id": peer_id}, token)
    chat_id = opened["chat_id"]
    sent = [
        await command("send-message", {"chat_id": chat_id, "content": text}, token)
        for text in (replay_readers.RARE, *(f"before {n}" for n in range(1, CHAT_MESSAGES)))
    ]
    liked_id = sent[0]["message_id"]
    await command("add-reaction", {"message_id": liked_id, "emoji": "👍"}, peer_token)
    positions = [one["position"] for one in sent]
    return Chat(chat_id, sender_id, token, peer_token, liked_id, positions)
