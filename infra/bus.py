"""NATS for every process: hints that may be lost, and JetStream's copy of the log.

A bus connects in the background and for ever; while NATS is away hints go nowhere and
JetStream calls raise Unavailable. Nobody's correctness rests on it: the log is in PostgreSQL.

Hints: `messenger.head` after each commit, `messenger.projected.NAME` after each batch of a
projection (payload: the position), `messenger.sessions` when sessions ended.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, Self

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from infra.errors import Unavailable
from infra.metrics import BusMetrics
from infra.settings import Settings

HEAD = "messenger.head"
PROJECTED = "messenger.projected"
SESSIONS = "messenger.sessions"

EVENT_SUBJECTS = "event.>"
RETAINED_EVENTS = 1_000_000
RETAINED_BYTES = 4 * 1024**3
RETAINED_SECONDS = 30 * 24 * 3600
CONNECT_TIMEOUT_SECONDS = 2
RECONNECT_SECONDS = 0.25
REQUEST_TIMEOUT_SECONDS = 3.0
CLOSE_TIMEOUT_SECONDS = 1.0
# A server, or a network, that fell silent is left after three of them.
PING_SECONDS = 3
OUTSTANDING_PINGS = 2
PENDING_BYTES = 1024 * 1024
# NATS's word where a password is wrong or a right is missing; heard so long ago, it still counts.
VIOLATION = "violation"
REFUSAL_SECONDS = 10.0

# What nats-py raises when the server is away or answers no.
BUS_ERRORS = (NatsError, OSError, asyncio.TimeoutError)

Callback = Callable[[Msg], Awaitable[None]]


STREAM = "EVENT_LOG_"


def stream_name(epoch: int) -> str:
    return f"{STREAM}{epoch}"


def epoch_of(stream: str | None) -> int:
    """0 for none, or for one that is not ours."""
    digits = (stream or "").removeprefix(STREAM)
    return int(digits) if digits != stream and digits.isdecimal() else 0


class Envelope(msgspec.Struct, frozen=True):
    """An event as JetStream carries it; field names are event_log's columns."""

    position: int
    event_id: str
    stream: str
    stream_version: int
    type: str
    schema_version: int
    data: msgspec.Raw
    metadata: msgspec.Raw
    recorded_at: datetime


class Extent(NamedTuple):
    """What a stream holds. `begin` is the sequence that it was made to begin with."""

    begin: int
    first: int
    last: int
    messages: int
    bytes: int

    @property
    def is_short(self) -> bool:
        """Whether messages are gone that neither count nor size limit took."""
        taken = self.last - self.begin + 1
        return self.messages < min(taken, RETAINED_EVENTS) and self.bytes < RETAINED_BYTES // 2


class Access(NamedTuple):
    """Whom to trust, and who we are, besides what the URL says."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self, urls: list[str]) -> ssl.SSLContext | None:
        """None where nothing asks for TLS."""
        if not (self.ca or self.certificate or any(url.startswith("tls:") for url in urls)):
            return None
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key)
        return context


OPEN = Access()


class Bus:
    """`async with Bus(url, name=…)`; `listen` before or after it is connected."""

    def __init__(
        self, url: str, *, name: str, access: Access = OPEN, metrics: BusMetrics | None = None
    ) -> None:
        self._urls = url.split(",")
        self._tls = access.context(self._urls)
        self._name = name
        self._client: Client | None = None
        self._callbacks: list[tuple[str, Callback]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusal = ""
        self._refused_at = float("-inf")
        self._metrics = metrics or BusMetrics()
        self._metrics.up.set_function(lambda: self.connected)

    @classmethod
    def of(cls, settings: Settings, *, name: str, metrics: BusMetrics | None = None) -> Self:
        access = Access(
            ca=settings.nats_ca,
            certificate=settings.nats_certificate,
            key=settings.nats_key,
        )
        return cls(settings.nats_url, name=name, access=access, metrics=metrics)

    async def __aenter__(self) -> Self:
        self._connecting = asyncio.create_task(self._connect(), name="bus")
        # Usually it is there: begin connected, but never wait long for it.
        await asyncio.wait([self._connecting], timeout=CONNECT_TIMEOUT_SECONDS)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._connecting.cancel()
        if self._client is not None:
            with suppress(*BUS_ERRORS):
                await asyncio.wait_for(self._client.close(), CLOSE_TIMEOUT_SECONDS)

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def client(self) -> Client:
        """Raises Unavailable while NATS is away."""
        if self._client is None or not self._client.is_connected:
            raise Unavailable(self.silence)
        return self._client

    @property
    def silence(self) -> str:
        """Why NATS does not answer, as far as it said so."""
        return self._refused() or "NATS does not answer"

    @property
    def jetstream(self) -> JetStreamContext:
        """Raises Unavailable while NATS is away."""
        return self.client.jetstream(timeout=REQUEST_TIMEOUT_SECONDS)

    def hint(self, subject: str, payload: bytes = b"") -> None:
        """Never raises, never waits, may be lost."""
        if self.connected:
            task = asyncio.create_task(self._publish(subject, payload))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._metrics.lost_hints.inc()

    async def listen(self, subject: str, callback: Callback) -> None:
        """Calls back for each hint, over reconnects too."""
        self._callbacks.append((subject, callback))
        if self._client is not None:
            await self._client.subscribe(subject, cb=callback)

    async def last_sequence(self, stream: str) -> int | None:
        """None if there is no such stream. Raises Unavailable."""
        extent = await self.extent(stream)
        return None if extent is None else extent.last

    async def extent(self, stream: str) -> Extent | None:
        """None if there is no such stream. Raises Unavailable."""
        try:
            info = await self.jetstream.stream_info(stream)
        except NotFoundError:
            return None
        except BUS_ERRORS as error:
            raise self._away("does not answer", error) from error
        state, begin = info.state, info.config.first_seq or 1
        return Extent(begin, state.first_seq, state.last_seq, state.messages, state.bytes)

    async def delete_stream(self, stream: str) -> None:
        """Raises Unavailable."""
        try:
            await self.jetstream.delete_stream(stream)
        except NotFoundError:
            pass
        except BUS_ERRORS as error:
            raise self._away(f"does not delete {stream}", error) from error

    async def stream_of_events(self) -> str | None:
        """Whichever stream takes the events' subjects; they allow only one. Raises Unavailable."""
        try:
            return await self.jetstream.find_stream_name_by_subject(EVENT_SUBJECTS)
        except NotFoundError:
            return None
        except BUS_ERRORS as error:
            raise self._away("does not answer", error) from error

    async def create_stream(self, stream: str, *, first_sequence: int) -> None:
        """Raises Unavailable."""
        config = StreamConfig(
            name=stream,
            subjects=[EVENT_SUBJECTS],
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            max_msgs=RETAINED_EVENTS,
            max_bytes=RETAINED_BYTES,
            max_age=RETAINED_SECONDS,
            allow_direct=True,
            first_seq=first_sequence,
        )
        try:
            await self.jetstream.add_stream(config)
        except BUS_ERRORS as error:
            raise self._away(f"does not make {stream}", error) from error

    async def _publish(self, subject: str, payload: bytes) -> None:
        try:
            await self.client.publish(subject, payload)
        except (*BUS_ERRORS, Unavailable):
            self._metrics.lost_hints.inc()

    async def _hear(self, error: Exception) -> None:
        """nats-py prints to stderr by default; most of it shows where the call fails."""
        if VIOLATION in str(error).lower():
            self._refusal = str(error).removeprefix("nats: ").strip("'")
            self._refused_at = monotonic()

    def _refused(self) -> str:
        """What NATS would not let us do, else nothing. Whoever asks it hears nothing but silence."""
        is_recent = monotonic() - self._refused_at < REFUSAL_SECONDS
        return f"NATS refuses: {self._refusal}" if is_recent else ""

    def _away(self, told: str, error: Exception) -> Unavailable:
        return Unavailable(f"JetStream {told}: {self._refused() or error}")

    async def _reconnected(self) -> None:
        self._metrics.reconnects.inc()

    async def _connect(self) -> None:
        while self._client is None:
            client = _Client()
            try:
                await client.connect(
                    self._urls,
                    name=f"messenger {self._name}",
                    connect_timeout=CONNECT_TIMEOUT_SECONDS,
                    reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type]
                    max_reconnect_attempts=-1,
                    allow_reconnect=True,
                    error_cb=self._hear,
                    reconnected_cb=self._reconnected,
                    pending_size=PENDING_BYTES,
                    ping_interval=PING_SECONDS,
                    max_outstanding_pings=OUTSTANDING_PINGS,
                    tls=self._tls,
                )
            except BUS_ERRORS:
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            for subject, callback in self._callbacks:
                await client.subscribe(subject, cb=callback)
            self._client = client


class _Client(Client):
    """One that leaves where TLS was asked for and is not offered: nats-py would go on without, and
    send its credentials. And one that closes a connection on which the server said nothing: nats-py
    would leave each open. Rests on the insides of nats-py; requirements.txt pins them."""

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except BaseException:
            if self._transport is not None:
                self._transport.close()  # type: ignore[no-untyped-call]
            raise

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and "tls" in self.options and not info.get("tls_required"):
            raise NatsError("the server does not speak TLS")
        await super()._process_info(info, initial_connection)
