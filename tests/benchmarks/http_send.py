"""`POST /v1/commands/send-message` with the full system running: API, relay, all projectors.

Half of the messages go into chats of 2, half into chats of 10, at a fixed rate; then at half
of that; then at rising rates, to find the highest that is sustained. Baselines of the same
run: GET /health/live at the same rate, which is what the HTTP server alone costs, and pgbench
inserting the same event.
"""

import asyncio
import sys
from itertools import chain, cycle, islice
from typing import Any

import httpx
import msgspec

from tests.benchmarks import harness, pgbench, system
from tests.benchmarks.harness import Report, at_least, below
from tests.benchmarks.load import Plan, Result
from tests.benchmarks.system import Running, Used
from tests.benchmarks.workload import TEXTS

RATE = 800
SECONDS = 30
QUICK_SECONDS = 3
SETTLE_SECONDS = 2.0
P99_MS = 60.0
BASELINE_SECONDS = 5
WARM_UP_SECONDS = 5
RAMP_SECONDS = 10
RAMP_STEP = 1.15
MAX_RAMP_STEPS = 12
RAMP_P99_MS = 1_000.0
SUSTAINED = 0.98  # of the rate asked for
USERS = 200
CHAT_SIZES = (2, 10)
LOAD_TIMEOUT_SECONDS = 180.0
SETUP_TIMEOUT_SECONDS = 60.0
PGBENCH_CLIENTS = 64
PASSWORD = "correct horse"

LIVE = "GET /health/live HTTP/1.1\r\nHost: bench\r\n\r\n"


async def run(report: Report, *, is_quick: bool) -> None:
    seconds = QUICK_SECONDS if is_quick else SECONDS
    async with system.up() as running:
        harness.note_server(report, running.database_url)
        sends = await requests(running.api_url)
        await load(running, sends, RATE / 2, WARM_UP_SECONDS)
        await _insert(report, running)
        await _live(report, running, RATE)
        full = await _send(report, running, sends, RATE, seconds)
        report.add(
            f"at {RATE}/s for {seconds} s: read models at the head after",
            full.settle_seconds,
            "s",
            target=below(SETTLE_SECONDS),
        )
        await _live(report, running, RATE / 2)
        half = await _send(report, running, sends, RATE / 2, seconds)
        report.add(f"at {RATE / 2:.0f}/s: p99", half.p99_ms, "ms", target=below(P99_MS))
        if not is_quick:
            await _ramp(report, running, sends)
        await _insert(report, running)


async def _send(
    report: Report, running: Running, sends: list[str], rate: float, seconds: float
) -> Result:
    before = system.used(running)
    result = await load(running, sends, rate, seconds)
    name = f"at {rate:.0f}/s for {seconds:.0f} s"
    report.add(f"{name}: errors", result.failures, "", target=below(1))
    report.add(f"{name}: sent", result.per_second, "messages/s", target=at_least(SUSTAINED * rate))
    report.add(f"{name}: p50", result.p50_ms, "ms")
    report.note(f"{name}: p99 {result.p99_ms:.1f} ms, longest {result.max_ms:.1f} ms")
    report.note(f"{name}, processor per message: {_shares(before, system.used(running), result)}")
    for error in result.errors:
        report.note(error)
    return result


async def _ramp(report: Report, running: Running, sends: list[str]) -> None:
    """The highest rate that was sustained before one was not."""
    best, rate = 0.0, float(RATE)
    for _ in range(MAX_RAMP_STEPS):
        result = await load(running, sends, rate, RAMP_SECONDS)
        report.note(
            f"ramp at {rate:.0f}/s: {result.per_second:.0f}/s, p50 {result.p50_ms:.1f} ms, "
            f"p99 {result.p99_ms:.0f} ms, at the head after {result.settle_seconds:.2f} s"
        )
        if not _is_sustained(result, rate):
            break
        best, rate = result.per_second, rate * RAMP_STEP
    report.add(f"highest rate sustained for {RAMP_SECONDS} s", best, "messages/s")


def _is_sustained(result: Result, rate: float) -> bool:
    return (
        result.failures == 0
        and result.per_second >= SUSTAINED * rate
        and result.p99_ms < RAMP_P99_MS
        and result.settle_seconds < SETTLE_SECONDS
    )


async def _live(report: Report, running: Running, rate: float) -> None:
    result = await load(running, [LIVE], rate, BASELINE_SECONDS)
    report.add(f"baseline: GET /health/live at {rate:.0f}/s, p99", result.p99_ms, "ms")


async def _insert(report: Report, running: Running) -> None:
    event = pgbench.last_message(running.database_url)
    rate = await pgbench.inserts(
        running.database_url, event, clients=PGBENCH_CLIENTS, seconds=BASELINE_SECONDS
    )
    report.add("baseline: pgbench inserts of the event", rate.per_second, "events/s")


async def load(running: Running, requests: list[str], rate: float, seconds: float) -> Result:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.load"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    plan = msgspec.json.encode(Plan(running.api_url, requests, rate, seconds))
    output, _ = await asyncio.wait_for(process.communicate(plan), LOAD_TIMEOUT_SECONDS)
    assert process.returncode == 0, "the load generator failed; its errors are above"
    return msgspec.json.decode(output, type=Result)


def _shares(before: dict[str, Used], after: dict[str, Used], result: Result) -> str:
    seconds = {
        name: after[name].processor_seconds - before[name].processor_seconds for name in after
    }
    seconds["load generator"] = result.processor_seconds
    costs = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {1e3 * each / result.answered:.2f} ms" for name, each in costs)


async def requests(url: str) -> list[str]:
    """Sends by turns into small and large chats, by all of their members."""
    async with httpx.AsyncClient(base_url=url, timeout=SETUP_TIMEOUT_SECONDS) as client:
        people = [await person(client, number) for number in range(USERS)]
        by_size = [
            [
                (token, chat_id)
                for begin in range(0, USERS, size)
                for token, chat_id in await group(client, people[begin : begin + size])
            ]
            for size in CHAT_SIZES
        ]
    seats = chain.from_iterable(zip(*by_size, strict=True))
    texts = islice(cycle(TEXTS), USERS * len(CHAT_SIZES))
    return [
        request(token, chat_id, text) for (token, chat_id), text in zip(seats, texts, strict=True)
    ]


async def person(client: httpx.AsyncClient, number: int) -> tuple[str, str]:
    """The id and an access token."""
    account = {"username": f"bench_{number}", "password": PASSWORD}
    registered = await posted(client, "/v1/commands/register-user", account)
    session = await posted(client, "/v1/sessions", account)
    return registered["user_id"], session["access_token"]


async def group(client: httpx.AsyncClient, members: list[tuple[str, str]]) -> list[tuple[str, str]]:
    (_, owner_token), *others = members
    created_group = {"name": "Friends", "member_ids": [user_id for user_id, _ in others]}
    created = await posted(client, "/v1/commands/create-group", created_group, token=owner_token)
    return [(token, created["chat_id"]) for _, token in members]


async def posted(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], *, token: str = ""
) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    response = await client.post(path, json=body, headers=headers)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def request(token: str, chat_id: str, text: str) -> str:
    body = msgspec.json.encode({"chat_id": chat_id, "content": text}).decode()
    return (
        "POST /v1/commands/send-message HTTP/1.1\r\nHost: bench\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body.encode())}\r\n\r\n{body}"
    )
