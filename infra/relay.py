"""The relay: copies the log to JetStream, message n being log row n.

It asks JetStream for its last sequence and sends what comes after it, in windows, each message
with the sequence that must be there before it. At the end of a window it waits for the
acknowledgements of all: a stranger's message in its middle would take an event's place, and the
next ones would fit again. A relay that died before it heard of that leaves it to the next, which
begins with a look at as many of the copy's last messages as a window has. It keeps no checkpoint, so a copy that vanished or went back is just
filled again. Any number of relays are safe, for the expected sequences let each event in once; an
advisory lock lets one lead and the others wait.

If the copy knows a later log than this one, the log went back in time (infra.history): the relay
stops with one line, for an operator to act. Once there is a new epoch, nothing more goes into the
copy of the old one.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from time import monotonic
from typing import Any

import msgspec
from nats.aio.msg import Msg

from infra import bus as buses
from infra import clock, database, event_log, history
from infra.bus import BUS_ERRORS, Bus, Envelope, Extent, epoch_of, stream_name
from infra.database import DOWN, Connection, first_line
from infra.errors import LogError, MessengerError, Stopped, Unavailable
from infra.logs import Logger
from infra.metrics import RelayMetrics
from infra.tracing import MAX_FOLLOWED, Tracer

WINDOW_EVENTS = 1_000
# Under load windows grow instead of following each other without a pause.
WINDOW_INTERVAL_SECONDS = 0.005
MIN_POLL_SECONDS = 0.005
MAX_POLL_SECONDS = 0.25
FOLLOWER_POLL_SECONDS = 1.0
LOOK_SECONDS = 0.5
RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
RELAY_LOCK = 0x72656C61  # "rela"

LEAD = """
    SELECT pg_try_advisory_lock(%s)
"""

WINDOW = """
    SELECT position, event_id::text, stream, stream_version, type, schema_version, data::text,
        metadata::text, recorded_at
    FROM event_log
    WHERE position > %s AND position <= (SELECT h.position FROM log_head AS h WHERE h.epoch = %s)
    ORDER BY position
    LIMIT %s
"""


def subject(stream: str, type_name: str) -> str:
    """`event.CATEGORY.ID.TYPE` of a stream `CATEGORY-ID`."""
    category, _, identity = stream.partition("-")
    return f"event.{category}.{identity}.{type_name}"


class Relay:
    """`run` never returns; it raises Stopped when an operator has to act."""

    def __init__(
        self,
        database_url: str,
        bus: Bus,
        logger: Logger,
        metrics: RelayMetrics | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._url = database_url
        self._tracer = tracer
        self._metrics = metrics or RelayMetrics()
        self._metrics.sent_position.set_function(lambda: self.position)
        self._bus = bus
        self._logger = logger
        self._wake = asyncio.Event()
        self._inbox = ""
        self._window = _Window("", range(0))
        self.position = 0

    async def run(self) -> None:
        await self._bus.listen(buses.HEAD, self._on_hint)
        failures = 0
        while True:
            try:
                async with await database.connect(
                    self._url, name=database.process_name("relay")
                ) as connection:
                    await self._lead(connection)
                    failures = 0
                    with self._metrics.leads.track_inprogress():
                        async with self._answered():
                            await self._follow(connection)
            except Stopped:
                raise
            except (MessengerError, *BUS_ERRORS, *DOWN) as error:
                self._metrics.interruptions.inc()
                self._logger.warning("relay_interrupted", reason=first_line(error))
                await asyncio.sleep(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])
                failures += 1

    async def _on_hint(self, _: Msg) -> None:
        self._wake.set()

    async def _lead(self, connection: Connection) -> None:
        while True:
            row: Any = await (await connection.execute(LEAD, (RELAY_LOCK,))).fetchone()
            if row[0]:
                return
            await asyncio.sleep(FOLLOWER_POLL_SECONDS)

    async def _follow(self, connection: Connection) -> None:
        head = await event_log.head(connection)
        stream = stream_name(head.epoch)
        self.position = last = await self._meet(connection, stream, head)
        self._logger.info("relay_leads", stream=stream, sequence=last, head=head.position)
        poll_seconds, looked = MIN_POLL_SECONDS, monotonic()
        while True:
            self._wake.clear()
            sent = await self._send_window(connection, head.epoch, last)
            if monotonic() - looked >= LOOK_SECONDS:
                await self._look(connection, head.epoch, sent)
                looked = monotonic()
            if sent > last:
                is_full = sent - last == WINDOW_EVENTS
                self.position = last = sent
                poll_seconds = MIN_POLL_SECONDS
                await asyncio.sleep(0 if is_full else WINDOW_INTERVAL_SECONDS)
            else:
                await self._pause(poll_seconds)
                poll_seconds = min(poll_seconds * 2, MAX_POLL_SECONDS)

    async def _look(self, connection: Connection, epoch: int, last: int) -> None:
        """Nothing tells us when somebody wipes the copy, or begins a new epoch."""
        stream = stream_name(epoch)
        if (await event_log.head(connection)).epoch != epoch:
            raise Unavailable(f"{stream} is the copy of an epoch that has ended")
        extent = await self._bus.extent(stream)
        if extent is None or extent.last != last or await self._is_cut(stream, extent):
            raise Unavailable(f"{stream} is not as it was left")

    async def _is_cut(self, stream: str, extent: Extent) -> bool:
        """Whether events are gone from the copy that no limit took, such as by a purge."""
        if not extent.is_short or extent.messages == 0:
            return extent.is_short
        oldest = await self._bus.jetstream.get_msg(stream, extent.first)
        aged = clock.now() - timedelta(seconds=buses.RETAINED_SECONDS / 2)
        return oldest.time is None or oldest.time > aged

    async def _pause(self, poll_seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(poll_seconds):
                await self._wake.wait()

    async def _meet(self, connection: Connection, stream: str, head: event_log.Head) -> int:
        """Where the copy ends, after making sure that it is a copy of this log."""
        await history.check_copy(self._bus, connection)
        extent = await self._bus.extent(stream)
        if extent is None:
            return await self._begin(stream, head)
        if await self._is_cut(stream, extent):
            # Its sequences can't be used again: only a new stream holds the old events.
            await self._bus.delete_stream(stream)
            return await self._begin(stream, head)
        await self._check_last_window(connection, stream, extent.last)
        return extent.last

    async def _check_last_window(self, connection: Connection, stream: str, last: int) -> None:
        """Whoever sent it may not have heard what was refused in its middle."""
        differs = await history.first_difference(
            self._bus, connection, stream, last=last, events=WINDOW_EVENTS
        )
        if differs is not None:
            await history.check_copy(self._bus, connection, at=differs)
            raise Unavailable(f"{stream} changes at {differs}")

    async def _begin(self, stream: str, head: event_log.Head) -> int:
        """A new copy, of as much as is retained; that of an earlier epoch makes room for it."""
        taken_by = await self._bus.stream_of_events()
        if 0 < epoch_of(taken_by) < head.epoch:
            await self._bus.delete_stream(str(taken_by))
        first = max(1, head.position - buses.RETAINED_EVENTS + 1)
        await self._bus.create_stream(stream, first_sequence=first)
        self._metrics.copies_begun.inc()
        return first - 1

    async def _send_window(self, connection: Connection, epoch: int, last: int) -> int:
        """The sequence at which the copy then ends."""
        began = monotonic()
        rows = await (await connection.execute(WINDOW, (last, epoch, WINDOW_EVENTS))).fetchall()
        if not rows:
            return last
        if rows[-1][0] != last + len(rows):
            raise LogError(f"the log has {len(rows)} events in ({last}, {rows[-1][0]}]")
        stream = stream_name(epoch)
        refused = await self._publish(stream, rows)
        if refused is not None:
            await history.check_copy(self._bus, connection, at=refused)
            raise Unavailable(f"{stream} did not take {refused}")
        self._count(rows, monotonic() - began)
        position: int = rows[-1][0]
        return position

    def _count(self, rows: list[Any], seconds: float) -> None:
        self._logger.debug("relayed", first=rows[0][0], last=rows[-1][0])
        self._metrics.window_events.observe(len(rows))
        self._metrics.window_seconds.observe(seconds)
        if self._tracer is not None:
            self._tracer.follow(
                "relay",
                [trace for row in rows if (trace := _trace_of(row[7]))][:MAX_FOLLOWED],
                seconds=seconds,
                attributes={"messenger.last_position": rows[-1][0], "messenger.events": len(rows)},
            )

    async def _publish(self, stream: str, rows: list[tuple[Any, ...]]) -> int | None:
        """The first position that it did not take."""
        window = self._window = _Window(stream, range(rows[0][0], rows[-1][0] + 1))
        for row in rows:
            await self._bus.client.publish(
                subject(row[2], row[4]),
                payload(row),
                reply=f"{self._inbox}.{row[0]}",
                headers=_expected(row[0] - 1),
            )
        try:
            return await window.refused()
        except TimeoutError:
            raise Unavailable(f"{stream} acknowledges nothing: {self._bus.silence}") from None

    @asynccontextmanager
    async def _answered(self) -> AsyncIterator[None]:
        """Acknowledgements are heard, of what is sent in the block alone."""
        client = self._bus.client
        self._inbox = client.new_inbox()
        subscription = await client.subscribe(f"{self._inbox}.*", cb=self._on_answer)
        try:
            yield
        finally:
            with suppress(*BUS_ERRORS):
                await subscription.unsubscribe()

    async def _on_answer(self, message: Msg) -> None:
        self._window.answered(int(message.subject.rpartition(".")[2]), message.data)


class _Answer(msgspec.Struct):
    """JetStream's; a refusal has neither."""

    stream: str = ""
    seq: int = 0


class _Window:
    """The acknowledgements of one, which may come in any order."""

    def __init__(self, stream: str, positions: range) -> None:
        self._stream = stream
        self._open = set(positions)
        self._refused: list[int] = []
        self._all = asyncio.Event()

    def answered(self, position: int, data: bytes) -> None:
        try:
            answer = _answers.decode(data)
        except msgspec.DecodeError:
            answer = _Answer()  # that nobody takes it, for one
        if answer != _Answer(self._stream, position):
            self._refused.append(position)
        self._open.discard(position)
        if not self._open:
            self._all.set()

    async def refused(self) -> int | None:
        """The first; raises TimeoutError if not all are answered in time."""
        async with asyncio.timeout(buses.REQUEST_TIMEOUT_SECONDS):
            await self._all.wait()
        return min(self._refused, default=None)


_answers = msgspec.json.Decoder(_Answer)


def _trace_of(metadata: str) -> str | None:
    """To which trace an event belongs. Metadata of imported events may be anything."""
    try:
        return _traced.decode(metadata).trace
    except msgspec.MsgspecError:
        return None


class _Traced(msgspec.Struct):
    trace: str | None = None


_traced = msgspec.json.Decoder(_Traced)


def _expected(sequence: int) -> dict[str, str]:
    return {"Nats-Expected-Last-Sequence": str(sequence)}


def payload(row: tuple[Any, ...]) -> bytes:
    """The JSON of a row with the columns of `WINDOW`."""
    position, event_id, stream, version, type_name, schema, data, metadata, at = row
    return msgspec.json.encode(
        Envelope(
            position,
            event_id,
            stream,
            version,
            type_name,
            schema,
            msgspec.Raw(data.encode()),
            msgspec.Raw(metadata.encode()),
            at,
        )
    )
