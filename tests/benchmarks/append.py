"""Appending through the real executor: decide, seal, guard, append.

64 concurrent senders: 10 of them in one chat, the others six to a chat. The baseline is
pgbench, which inserts the same event with as many clients.
"""

import asyncio
from itertools import cycle
from time import perf_counter

from commands.send_message import SendMessage
from infra import migrate
from tests.benchmarks import harness, pgbench, workload
from tests.benchmarks.harness import Report, at_least_times_baseline, below, mean, percentile
from tests.benchmarks.pgbench import Event, Rate
from tests.benchmarks.workload import Seat
from tests.infra import machines
from tests.infra.machines import Machine

SECONDS = 10
QUICK_SECONDS = 3
WARM_UP_MESSAGES = 2_000
BUSY_CHAT_SENDERS = 10
QUIET_CHAT_SENDERS = 6
QUIET_CHATS = 9
JUDGED_SENDERS = 64
OTHER_SENDERS = (1, 512)
RATIO = 0.5
P99_MS = 25.0


async def run(report: Report, *, is_quick: bool) -> None:
    seconds = QUICK_SECONDS if is_quick else SECONDS
    async with harness.postgres() as server, machines.running(server.url) as machine:
        migrate.upgrade(server.url)
        harness.note_server(report, server.url)
        seats = await _seats(machine)
        await workload.send(machine, seats, WARM_UP_MESSAGES, together=JUDGED_SENDERS)
        event = pgbench.last_message(server.url)
        for senders in (JUDGED_SENDERS, *(() if is_quick else OTHER_SENDERS)):
            await _compare(report, machine, server.url, seats, event, senders, seconds)


async def _seats(machine: Machine) -> list[Seat]:
    people = await workload.people(machine, BUSY_CHAT_SENDERS + QUIET_CHATS * QUIET_CHAT_SENDERS)
    seats = await workload.group(machine, people[:BUSY_CHAT_SENDERS])
    for begin in range(BUSY_CHAT_SENDERS, len(people), QUIET_CHAT_SENDERS):
        seats += await workload.group(machine, people[begin : begin + QUIET_CHAT_SENDERS])
    return seats


async def _compare(
    report: Report,
    machine: Machine,
    url: str,
    seats: list[Seat],
    event: Event,
    senders: int,
    seconds: int,
) -> None:
    """The judged number of senders has targets; the others are for information."""
    before = await pgbench.inserts(url, event, clients=min(senders, 64), seconds=seconds)
    batches, commands = machine.appender.batches, machine.appender.commands
    ours = await send(machine, seats, senders, seconds)
    size = (machine.appender.commands - commands) / (machine.appender.batches - batches)
    after = await pgbench.inserts(url, event, clients=min(senders, 64), seconds=seconds)
    judged = senders == JUDGED_SENDERS
    report.add(
        f"{senders} senders",
        ours.per_second,
        "messages/s",
        baseline=mean([before.per_second, after.per_second]),
        target=at_least_times_baseline(RATIO) if judged else None,
    )
    report.add(
        f"{senders} senders, p50", ours.p50_ms, "ms", baseline=mean([before.p50_ms, after.p50_ms])
    )
    report.add(
        f"{senders} senders, p99",
        ours.p99_ms,
        "ms",
        baseline=mean([before.p99_ms, after.p99_ms]),
        target=below(P99_MS) if judged else None,
    )
    report.note(
        f"{senders} senders: {size:.1f} commands a batch; pgbench before and after: "
        f"{before.per_second:,.0f} and {after.per_second:,.0f} inserts/s"
    )


async def send(machine: Machine, seats: list[Seat], senders: int, seconds: int) -> Rate:
    times: list[float] = []
    began = perf_counter()
    deadline = began + seconds

    async def sender(seat: Seat, number: int) -> None:
        for text in cycle(workload.TEXTS[number:] + workload.TEXTS[:number]):
            start = perf_counter()
            if start > deadline:
                return
            await machine.run(SendMessage(chat_id=seat.chat_id, content=text), seat.user_id)
            times.append(perf_counter() - start)

    chosen = [seats[number % len(seats)] for number in range(senders)]
    await asyncio.gather(*(sender(seat, n % 6) for n, seat in enumerate(chosen)))
    elapsed = perf_counter() - began
    return Rate(len(times) / elapsed, percentile(times, 0.5) * 1e3, percentile(times, 0.99) * 1e3)
