"""The load generator of the stream, a process of its own: a thousand clients, few instructions each.

Reads one `Phase` a line on stdin and answers each with one line. Sockets stay open between phases.
Open loop: a message has its time, and what it took to each recipient counts from that time. A
client says `received` at most once in ACKNOWLEDGE_SECONDS. A frame that goes to many is decoded
once: the others are known by their bytes.
"""

import asyncio
import random
import sys
import time
from array import array
from collections import deque
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import msgspec
import uvloop

from tests.benchmarks.harness import percentile
from tests.benchmarks.workload import TEXTS

ACKNOWLEDGE_SECONDS = 0.1
TICK_SECONDS = 0.001
PHASE_TIMEOUT_SECONDS = 120.0
DRAIN_TIMEOUT_SECONDS = 30.0
MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_KNOWN_FRAMES = 2_000
MAX_ERRORS_KEPT = 3
TEXT, CLOSE = 0x81, 0x88
TRY_AGAIN_LATER = 1013
RETRY_SECONDS = 1.0
MAX_ATTEMPTS = 60
NO_NUMBER = -1


class Open(msgspec.Struct, tag="open"):
    """A socket for each token, all at once; with `after`, resuming, until so many messages that
    were missed are there."""

    url: str
    tokens: list[str]
    after: int | None = None
    missed: int = 0
    starts: bool = True


class Send(msgspec.Struct, frozen=True):
    """Who sends (the number of a token), where, and how many get it."""

    sender: int
    chat_id: str
    recipients: int


class Drive(msgspec.Struct, tag="drive"):
    """Sends in turn, at a fixed rate."""

    sends: list[Send]
    per_second: float
    seconds: float


class Saturate(msgspec.Struct, tag="saturate"):
    """Sends in turn, each socket with so many commands on their way: as fast as it goes."""

    sends: list[Send]
    together: int
    seconds: float


class Cut(msgspec.Struct, tag="cut"):
    """No goodbye: the connections are just gone."""


Phase = Open | Drive | Saturate | Cut


class Outcome(msgspec.Struct):
    """Of any phase; what a phase does not say is 0. `ready_seconds`: until all were told so.
    `times_ms`: by number of recipients, p50, p99 and the longest."""

    seconds: float
    ready_seconds: float = 0.0
    sent: int = 0
    received: int = 0
    missing: int = 0
    disordered: int = 0
    position: int = 0
    answered_p50_ms: float = 0.0
    answered_p99_ms: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    times_ms: dict[int, tuple[float, float, float]] = {}
    acknowledged: int = 0
    refused: int = 0
    frames: int = 0
    processor_seconds: float = 0.0
    errors: list[str] = []


class _Frame(msgspec.Struct):
    op: str
    ref: int = NO_NUMBER
    position: int = 0
    type: str = ""
    data: msgspec.Raw = msgspec.Raw(b"{}")


class _Message(msgspec.Struct):
    content: str


_frame = msgspec.json.Decoder(_Frame)
_message = msgspec.json.Decoder(_Message)


class Owner(Protocol):
    """Whom a socket tells what it hears."""

    def heard(self, client: "Client", payload: bytes, now: float) -> None: ...

    def lost(self, client: "Client", why: str) -> None: ...


class Client(asyncio.Protocol):
    """One socket. `position` is that of the last event it had."""

    def __init__(
        self, owner: Owner, number: int, request: bytes, first: bytes, position: int
    ) -> None:
        self._owner = owner
        self._request = request
        self._first = first
        self.number = number
        self.position = position
        self.begin()

    def begin(self) -> "Client":
        """Again, on another connection."""
        self._buffer = b""
        self._is_open = False
        self.owes = False
        self.is_cut = False
        self.ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not one by type
        self.transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.lost(self, f"a connection ended: {exc}")

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        buffer = self._buffer + data if self._buffer else data
        at = 0 if self._is_open else self._shake(buffer)
        end = len(buffer) if self._is_open else 0
        while end - at >= 2:
            length, begin = buffer[at + 1], at + 2
            if length >= 126:
                begin += 2 if length == 126 else 8
                length = int.from_bytes(buffer[at + 2 : begin])
            if begin + length > end:
                break
            self._take(buffer[at], buffer[begin : begin + length], now)
            at = begin + length
        self._buffer = buffer[at:]

    def say(self, payload: bytes) -> None:
        self.transport.write(masked(payload))

    def _shake(self, buffer: bytes) -> int:
        """Where the frames begin, if the answer is all there."""
        head_end = buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return 0
        if buffer[9:12] != b"101":
            self._end(buffer[:head_end].decode(errors="replace"))
            return 0
        self._is_open = True
        self.transport.write(self._first)
        if not self._first:
            self.ready.set_result(True)
        return head_end + 4

    def _take(self, first: int, payload: bytes, now: float) -> None:
        if first == TEXT:
            self._owner.heard(self, payload, now)
        elif first == CLOSE:
            code = int.from_bytes(payload[:2])
            if code == TRY_AGAIN_LATER and not self.ready.done():
                self.is_cut = True
                self.ready.set_result(False)
            self._end(f"closed with {code} {payload[2:]!r}")

    def _end(self, why: str) -> None:
        self._owner.lost(self, why)
        self.is_cut = True
        self.transport.close()


def masked(payload: bytes) -> bytes:
    """A client's frame. The mask is of zeros, so that nothing is to be masked."""
    length = len(payload)
    if length < 126:
        return bytes((TEXT, 0x80 | length)) + bytes(4) + payload
    if length < 65_536:
        return bytes((TEXT, 0x80 | 126)) + length.to_bytes(2) + bytes(4) + payload
    return bytes((TEXT, 0x80 | 127)) + length.to_bytes(8) + bytes(4) + payload


class Measured:
    """What a phase has counted so far."""

    def __init__(self) -> None:
        self.due: list[float] = []
        self.recipients: list[int] = []
        self.times: dict[int, array[float]] = {}
        self.received = 0
        self.answered = 0
        self.answer_times = array("d")
        self.disordered = 0
        self.acknowledged = 0
        self.frames = 0
        self.messages = 0
        self.refused = 0
        self.ready_seconds = 0.0
        self.first = 0

    def took(self, number: int, now: float) -> None:
        """A message of an earlier phase is not counted."""
        number -= self.first
        if 0 <= number < len(self.due):
            self.received += 1
            self.times.setdefault(self.recipients[number], array("d")).append(
                (now - self.due[number]) * 1e3
            )

    def answer(self, number: int, now: float) -> None:
        self.answered += 1
        self.answer_times.append((now - self.due[number - self.first]) * 1e3)

    @property
    def expected(self) -> int:
        return sum(self.recipients)


class Generator:
    """Runs phases, one after the other."""

    def __init__(self) -> None:
        self._clients: list[Client] = []
        self._known: dict[bytes, tuple[int, int, bool]] = {}
        self._owing: deque[tuple[float, Client]] = deque()
        self._errors: list[str] = []
        self._measured = Measured()
        self._numbers = 0
        self._next_of: list[deque[Send]] = []

    async def run(self, phase: Phase) -> Outcome:
        self._errors = []
        first, self._measured = self._numbers, Measured()
        self._measured.first = first
        began, used = time.perf_counter(), time.process_time()
        match phase:
            case Open():
                await self._open(phase)
            case Drive():
                await self._drive(phase)
            case Saturate():
                await self._saturate(phase)
            case Cut():
                await self._cut()
        return self._outcome(time.perf_counter() - began, time.process_time() - used)

    def heard(self, client: Client, payload: bytes, now: float) -> None:
        self._measured.frames += 1
        known = self._known.get(payload)
        if known is None:
            known = self._look(client, payload, now)
            if known is None:
                return
        number, position, is_message = known
        if position <= client.position:
            self._measured.disordered += 1
        client.position = position
        if is_message:
            self._measured.messages += 1
            self._measured.took(number, now)
            if not client.owes:
                client.owes = True
                self._owing.append((now + ACKNOWLEDGE_SECONDS, client))

    def lost(self, client: Client, why: str) -> None:
        if not client.is_cut:
            self._fail(why)
            if not client.ready.done():
                client.ready.set_exception(ConnectionError(why))

    def _look(self, client: Client, payload: bytes, now: float) -> tuple[int, int, bool] | None:
        """Number, position, and whether it is a message; None for what is no event."""
        frame = _frame.decode(payload)
        if frame.op != "event":
            self._answered(client, frame, payload, now)
            return None
        is_message = frame.type == "message_sent"
        number = NO_NUMBER
        if is_message:
            first, _, _ = _message.decode(frame.data).content.partition(" ")
            number = int(first) if first.isdecimal() else NO_NUMBER
        if len(self._known) >= MAX_KNOWN_FRAMES:
            self._known.clear()
        known = self._known[payload] = (number, frame.position, is_message)
        return known

    def _answered(self, client: Client, frame: _Frame, payload: bytes, now: float) -> None:
        match frame.op:
            case "ready":
                if client.position == 0:  # else what was missed comes after what it had
                    client.position = frame.position
                client.ready.set_result(True)
            case "result":
                self._measured.answer(frame.ref, now)
                self._follow(client)
            case "ping":
                client.say(b'{"op":"pong"}')
            case "problem":
                self._measured.answered += 1
                self._fail(payload.decode())
            case _:
                pass

    def _fail(self, why: str) -> None:
        if len(self._errors) < MAX_ERRORS_KEPT:
            self._errors.append(why)

    # ------------------------------------------------------------------------- phases

    async def _open(self, phase: Open) -> None:
        began, address = time.perf_counter(), urlsplit(phase.url)
        start: dict[str, Any] = {"op": "start"}
        if phase.after is not None:
            start["after"] = phase.after
        first = masked(msgspec.json.encode(start)) if phase.starts else b""
        self._clients = [
            Client(self, number, _upgrade(token), first, phase.after or 0)
            for number, token in enumerate(phase.tokens)
        ]
        async with asyncio.TaskGroup() as group:
            for client in self._clients:
                group.create_task(self._connect(client, address.hostname or "", address.port or 80))
        self._measured.ready_seconds = time.perf_counter() - began
        await self._until(lambda: self._measured.messages >= phase.missed)

    async def _connect(self, client: Client, host: str, port: int) -> None:
        """A client that is told to try again later does."""
        loop = asyncio.get_running_loop()
        for _ in range(MAX_ATTEMPTS):
            await loop.create_connection(client.begin, host, port)
            if await client.ready:
                return
            self._measured.refused += 1
            await asyncio.sleep(random.uniform(0.5, 1.5) * RETRY_SECONDS)
        raise ConnectionError("refused for ever")

    async def _drive(self, phase: Drive) -> None:
        count = int(phase.per_second * phase.seconds)
        began = time.perf_counter() + TICK_SECONDS
        measured, sends = self._measured, phase.sends
        while len(measured.due) < count:
            now = time.perf_counter()
            while (
                len(measured.due) < count
                and (due := began + len(measured.due) / phase.per_second) <= now
            ):
                self._send(sends[len(measured.due) % len(sends)], due)
            await self._tick()
        await self._until(
            lambda: measured.received >= measured.expected and measured.answered >= count
        )

    async def _saturate(self, phase: Saturate) -> None:
        self._next_of = [deque() for _ in self._clients]
        for send in phase.sends:
            self._next_of[send.sender].append(send)
        now = time.perf_counter()
        for client, sends in zip(self._clients, self._next_of, strict=True):
            for _ in range(phase.together):
                self._send_next(client, sends)
        while time.perf_counter() < now + phase.seconds:
            await self._tick()
        self._next_of = []
        answered = self._measured.answered
        await self._until(lambda: self._measured.answered >= len(self._measured.due))
        self._measured.answered = answered

    async def _cut(self) -> None:
        for client in self._clients:
            client.is_cut = True
            client.transport.abort()
        self._owing.clear()
        await asyncio.sleep(TICK_SECONDS)

    # ------------------------------------------------------------------------ sending

    def _follow(self, client: Client) -> None:
        if self._next_of:
            self._send_next(client, self._next_of[client.number])

    def _send_next(self, client: Client, sends: deque[Send]) -> None:
        if sends:
            send = sends[0]
            sends.rotate(-1)
            self._send(send, time.perf_counter(), client)

    def _send(self, send: Send, due: float, client: Client | None = None) -> None:
        number = self._numbers
        self._numbers += 1
        self._measured.due.append(due)
        self._measured.recipients.append(send.recipients)
        sender = client or self._clients[send.sender]
        sender.say(command(number, send.chat_id))

    async def _tick(self) -> None:
        await asyncio.sleep(TICK_SECONDS)
        now = time.perf_counter()
        while self._owing and self._owing[0][0] <= now:
            _, client = self._owing.popleft()
            client.owes = False
            client.say(b'{"op":"received","position":%d}' % client.position)
            self._measured.acknowledged += 1

    async def _until(self, is_done: Any) -> None:
        """Also goes on acknowledging; what is missing after DRAIN_TIMEOUT_SECONDS is missing."""
        ends = time.perf_counter() + DRAIN_TIMEOUT_SECONDS
        while (not is_done() or self._owing) and time.perf_counter() < ends:
            await self._tick()
        if not is_done():
            self._fail("not all came")

    def _outcome(self, seconds: float, processor_seconds: float) -> Outcome:
        measured = self._measured
        every = [each for times in measured.times.values() for each in times] or [0.0]
        return Outcome(
            seconds=seconds,
            ready_seconds=measured.ready_seconds,
            sent=measured.answered,
            received=measured.received,
            missing=measured.expected - measured.received,
            disordered=measured.disordered,
            position=max((client.position for client in self._clients), default=0),
            answered_p50_ms=percentile(measured.answer_times or [0.0], 0.5),
            answered_p99_ms=percentile(measured.answer_times or [0.0], 0.99),
            p50_ms=percentile(every, 0.5),
            p99_ms=percentile(every, 0.99),
            max_ms=max(every),
            times_ms={
                size: (percentile(times, 0.5), percentile(times, 0.99), max(times))
                for size, times in sorted(measured.times.items())
            },
            acknowledged=measured.acknowledged,
            refused=measured.refused,
            frames=measured.frames,
            processor_seconds=processor_seconds,
            errors=self._errors,
        )


def command(number: int, chat_id: str) -> bytes:
    data = {"chat_id": chat_id, "content": f"{number} {TEXTS[number % len(TEXTS)]}"}
    return msgspec.json.encode(
        {"op": "command", "ref": number, "name": "send-message", "data": data}
    )


def _upgrade(token: str) -> bytes:
    return (
        "GET /v1/stream HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    ).encode()


async def main() -> None:
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    generator = Generator()
    while line := await reader.readline():
        phase: Phase = msgspec.json.decode(line, type=Phase)
        async with asyncio.timeout(PHASE_TIMEOUT_SECONDS):
            outcome = await generator.run(phase)
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    uvloop.run(main())
