"""Follows the log's copy in JetStream: a bounded buffer of the events that come next.

It promises nothing but order: what `take` gives is exactly what follows the given position,
or nothing. On a gap, an overflow or an error it stops following, and its owner reads
PostgreSQL instead and starts it again.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Self

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from domain.event import Recorded
from infra import codec
from infra.bus import BUS_ERRORS, REQUEST_TIMEOUT_SECONDS, Bus, Envelope
from infra.errors import MessengerError

MAX_BUFFERED_EVENTS = 10_000
INACTIVE_SECONDS = 30.0
# Apart from all other inboxes: NATS may keep readers from those (infra/production/nats.conf).
FOLLOWED = "_INBOX.followed"
INBOX_BYTES = 16

_decoder = msgspec.json.Decoder(Envelope)


class Follower:
    """`async with` it; `start` after a position, then `take`."""

    def __init__(self, bus: Bus, types: Collection[str]) -> None:
        self._bus = bus
        self._types = types
        self._buffer: deque[Recorded] = deque()
        self._arrived = asyncio.Event()
        self._subscription: Subscription | None = None
        self._consumer: tuple[str, str] | None = None
        self._next = 0
        self._stream = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def follows(self) -> bool:
        return self._subscription is not None

    @property
    def buffered(self) -> int:
        return len(self._buffer)

    async def start(self, stream: str, *, after: int) -> int:
        """Where the copy ended as it began to follow; 0 if it follows there already, or if
        JetStream can't be reached."""
        if self._subscription is not None and self._next > after and stream == self._stream:
            return 0
        await self.stop()
        try:
            await self._subscribe(stream, after)
            return await self._bus.last_sequence(stream) or 0
        except (MessengerError, NotFoundError, *BUS_ERRORS):
            await self.stop()
            return 0

    async def stop(self) -> None:
        subscription, self._subscription = self._subscription, None
        consumer, self._consumer = self._consumer, None
        self._buffer.clear()
        try:
            if subscription is not None:
                await subscription.unsubscribe()
            if consumer is not None:
                await self._bus.jetstream.delete_consumer(*consumer)
        except (MessengerError, NotFoundError, *BUS_ERRORS):
            pass  # the server forgets an inactive consumer by itself

    async def take(self, *, after: int, most: int, timeout_seconds: float) -> list[Recorded]:
        """Up to `most` events that follow `after` without a gap; none after the timeout."""
        while self._buffer and self._buffer[0].position <= after:
            self._buffer.popleft()
        if not self._buffer:
            await self._wait(timeout_seconds)
        while self._buffer and self._buffer[0].position <= after:
            self._buffer.popleft()
        if self._buffer and self._buffer[0].position != after + 1:
            await self.stop()
        return [self._buffer.popleft() for _ in range(min(most, len(self._buffer)))]

    def give_back(self, events: Sequence[Recorded]) -> None:
        """The last of what was taken."""
        if self._subscription is not None:
            self._buffer.extendleft(reversed(events))

    async def _wait(self, timeout_seconds: float) -> None:
        self._arrived.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._arrived.wait()

    async def _subscribe(self, stream: str, after: int) -> None:
        client = self._bus.client
        inbox = f"{FOLLOWED}.{secrets.token_hex(INBOX_BYTES)}"
        self._next, self._stream = after + 1, stream
        self._subscription = await client.subscribe(inbox, cb=self._receive)
        created = await self._bus.jetstream.add_consumer(
            stream,
            ConsumerConfig(
                deliver_subject=inbox,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=after + 1,
                ack_policy=AckPolicy.NONE,
                inactive_threshold=INACTIVE_SECONDS,
                mem_storage=True,
                num_replicas=1,
            ),
            timeout=REQUEST_TIMEOUT_SECONDS,
        )
        self._consumer = (stream, created.name)

    async def _receive(self, message: Msg) -> None:
        if self._subscription is None or not message.data:
            return
        recorded = self._decode(message)
        if recorded is None or recorded.position != self._next:
            if recorded is None or recorded.position > self._next:
                await self.stop()
            return
        if len(self._buffer) >= MAX_BUFFERED_EVENTS:
            await self.stop()
            return
        self._next += 1
        self._buffer.append(recorded)
        self._arrived.set()

    def _decode(self, message: Msg) -> Recorded | None:
        """None if the message is not the log event that its sequence says."""
        try:
            envelope = _decoder.decode(message.data)
            event = None
            if envelope.type in self._types:
                event = codec.decode(envelope.type, envelope.schema_version, envelope.data)
        except (msgspec.DecodeError, MessengerError):
            return None
        if message.metadata.sequence.stream != envelope.position:
            return None
        return Recorded(envelope.position, envelope.recorded_at, event)
