"""Sending as fast as it goes, with the whole system running: over HTTP and over the stream.

By turns: 64 senders that always have one request on its way over HTTP; the same with one and
with eight commands on their way on a socket each; and the same 64 with no transport at all, in a
process that is nothing but the executor. That is what a transport that cost nothing would come
to, since relay, projectors and PostgreSQL share the processors with it. Then one sender alone:
over HTTP, and with all that one connection takes over the socket.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from domain.ids import ChatId, UserId
from tests.benchmarks import append, harness, http_send, readers, system
from tests.benchmarks.crowd import Crowd, gathered, generating, note_errors, settled
from tests.benchmarks.harness import Report, at_least_times_baseline
from tests.benchmarks.stream_load import Cut, Open, Phase, Saturate, Send
from tests.benchmarks.system import Running
from tests.benchmarks.workload import TEXTS, Seat
from tests.infra import machines

SENDERS = 64
CHAT_SIZE = 2
PIPELINED = 8
ROUNDS, QUICK_ROUNDS = 3, 1
SECONDS, QUICK_SECONDS = 6, 1
HTTP_MESSAGES, QUICK_HTTP_MESSAGES = 12_000, 300
HTTP_AT_ONCE = 100_000.0  # a rate that nothing reaches: as fast as it goes
# For so long a connection may send as fast as it can: then its bucket of frames is empty.
BURST_SECONDS = 0.8
BURST = 64
SOCKET_RATIO = 1.5
LIKE_THEM = f"1000000 {TEXTS[1]}"  # as long as what the sockets send

Generate = Callable[[Phase], Any]


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
        await settled(running)
        spent = system.used(running)["api"].processor_seconds - before
        self.api_ms.append(1e3 * spent / sum(counts))


async def run(report: Report, *, is_quick: bool) -> None:
    async with system.up() as running:
        harness.note_server(report, running.database_url)
        crowd = await gathered(running.api_url, SENDERS, (CHAT_SIZE,))
        await settled(running)
        async with generating() as generate:
            await _all(report, running, crowd, generate, is_quick=is_quick)
            await _one(report, running, crowd, generate, is_quick=is_quick)


async def _all(
    report: Report, running: Running, crowd: Crowd, generate: Generate, *, is_quick: bool
) -> None:
    """The sockets do not start: HTTP's clients get no events either."""
    seconds = QUICK_SECONDS if is_quick else SECONDS
    messages = QUICK_HTTP_MESSAGES if is_quick else HTTP_MESSAGES
    requests = [_request(crowd, send) for send in crowd.sends]
    over_http, alone, pipelined, bare = Way(), Way(), Way(), Way()
    async with machines.running(running.database_url) as machine:
        seats = await _seats(machine, crowd)
        for _ in range(QUICK_ROUNDS if is_quick else ROUNDS):
            async with over_http.counted(running) as count:
                http = await http_send.load(
                    running, requests, HTTP_AT_ONCE, messages / HTTP_AT_ONCE
                )
                count(http.answered, http.per_second)
            for way, together in ((alone, 1), (pipelined, PIPELINED)):
                await generate(Open(running.api_url, crowd.tokens, starts=False))
                async with way.counted(running) as count:
                    sent = await generate(Saturate(crowd.sends, together, seconds))
                    note_errors(report, sent)
                    count(sent.sent, sent.sent / seconds)
                await generate(Cut())
            rate = await append.send(machine, seats, SENDERS, seconds)
            bare.rates.append(rate.per_second)
            await settled(running)
    _compare(report, over_http, alone, pipelined, bare)


def _compare(report: Report, over_http: Way, alone: Way, pipelined: Way, bare: Way) -> None:
    base, base_ms = harness.mean(over_http.rates), harness.mean(over_http.api_ms)
    report.add(f"{SENDERS} senders over HTTP, one request at a time each", base, "messages/s")
    for name, way in (
        ("over sockets, one at a time each", alone),
        (f"over sockets, {PIPELINED} at a time each", pipelined),
        ("with no transport at all", bare),
    ):
        rate = harness.mean(way.rates)
        report.add(f"{SENDERS} senders {name}, beside HTTP", rate, "messages/s", baseline=base)
    for name, way in (("one", alone), (f"{PIPELINED}", pipelined)):
        report.add(
            f"over sockets, {name} at a time: the API's processor for a message, beside HTTP",
            harness.mean(way.api_ms),
            "ms",
            baseline=base_ms,
        )


async def _one(
    report: Report, running: Running, crowd: Crowd, generate: Generate, *, is_quick: bool
) -> None:
    """One sender, who waits for nothing but the answers."""
    sends = [send for send in crowd.sends if send.sender == 0]
    over_http, over_socket = [], []
    for _ in range(QUICK_ROUNDS if is_quick else ROUNDS):
        over_http.append(await _in_turn(running, [_request(crowd, send) for send in sends]))
        await settled(running)
        await generate(Open(running.api_url, crowd.tokens[:1], starts=False))
        sent = await generate(Saturate(sends, BURST, BURST_SECONDS))
        note_errors(report, sent)
        over_socket.append(sent.sent / BURST_SECONDS)
        await generate(Cut())
        await settled(running)
    report.add(
        f"one sender over its socket, {BURST} at a time, beside one over HTTP",
        harness.mean(over_socket),
        "messages/s",
        baseline=harness.mean(over_http),
        target=at_least_times_baseline(SOCKET_RATIO),
    )


async def _in_turn(running: Running, requests: list[str]) -> float:
    """Messages a second, each sent when the one before it is answered."""
    plan = readers.Plan(running.api_url, [requests], 0.0, BURST_SECONDS)
    return (await readers.apart(plan)).per_second


async def _seats(machine: machines.Machine, crowd: Crowd) -> list[Seat]:
    chats = {send.sender: send.chat_id for send in crowd.sends}
    holders = [await machine.executor.holder("username", f"bench_{n}") for n in range(SENDERS)]
    users = [UserId(str(holder).removeprefix("user-")) for holder in holders]
    return [Seat(ChatId(chats[number]), user_id) for number, user_id in enumerate(users)]


def _request(crowd: Crowd, send: Send) -> str:
    return http_send.request(crowd.tokens[send.sender], send.chat_id, LIKE_THEM)
