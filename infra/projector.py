"""Runs one projection: reads the log, plans, writes rows and checkpoint in one transaction.

While behind or busy it reads PostgreSQL; else it follows JetStream from its checkpoint on. Each
event must be the next one: a gap, a repeat, silence or a dead NATS only means that it reads
PostgreSQL again. The checkpoint's row is locked first and must be where this daemon left it,
so that two daemons of one name, or a replay's swap, can never apply an event twice. A daemon
whose code is of another version than the tables stands by until a swap brings its own.

An event that can't be applied stops the projection: position, type and reason are recorded in
`projection_failures` and it tries again, with growing pauses, until the cause is gone or an
operator has it skipped (infra.skips). Rebuilds share all of this: they run the same code with
another search path.
"""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, NamedTuple

import msgspec
import psycopg

from domain.event import Recorded
from infra import bus as buses
from infra import clock, database, event_log, history, partitions, skips
from infra.bus import Bus
from infra.database import DOWN, Connection, first_line
from infra.ending import end
from infra.errors import MessengerError, Stopped, Unavailable
from infra.follower import Follower
from infra.keyring import Keyring
from infra.logs import Logger
from infra.metrics import JETSTREAM, LOG, ProjectorMetrics
from infra.ticks import TICK_SECONDS, whole_ticks
from infra.tracing import MAX_FOLLOWED, Tracer
from projections.projection import MonthlyPartitions, Projection, Statement, Step

MIN_BATCH_EVENTS = 100
MAX_BATCH_EVENTS = 5_000
BATCH_TARGET_SECONDS = 2.0
# At most so many commits a second while following: under load, batches grow instead.
COMMIT_INTERVAL_SECONDS = TICK_SECONDS
POLL_SECONDS = 0.25
# An event from JetStream costs this process about 100 µs, one of a range of PostgreSQL 10 µs
# and the range itself 500 µs: from this many events a commit on, ranges are read instead.
BUSY_EVENTS = 8
QUIET_ROUNDS = 8
RETRY_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0)
FENCED_SECONDS = 0.25
STAND_BY_SECONDS = 0.5
# Where events were read.
STATEMENT_TIMEOUT_MS = 120_000

CHECKPOINT = """
    SELECT position, version
    FROM projection_checkpoints
    WHERE projection = %s
"""

BEGIN_CHECKPOINT = """
    INSERT INTO projection_checkpoints (projection, position, updated_at, version)
    VALUES (%s, 0, now(), %s)
    ON CONFLICT DO NOTHING
"""

LOCK_CHECKPOINT = """
    SELECT position, version
    FROM projection_checkpoints
    WHERE projection = %s
    FOR UPDATE
"""

MOVE_CHECKPOINT = """
    UPDATE projection_checkpoints
    SET position = %s,
        updated_at = now()
    WHERE projection = %s
"""

# Unless it was skipped, or another daemon got over it, meanwhile.
RECORD_FAILURE = """
    INSERT INTO public.projection_failures (projection, position, type, reason, failed_at)
    SELECT c.projection, f.position, f.type, f.reason, f.failed_at
    FROM (VALUES (%s, %s::bigint, %s, %s, %s::timestamptz))
        AS f (projection, position, type, reason, failed_at)
    JOIN public.projection_checkpoints AS c
        ON c.projection = f.projection AND c.position = f.position - 1
    FOR SHARE OF c
    ON CONFLICT (projection) DO UPDATE
    SET position = excluded.position,
        type = excluded.type,
        reason = excluded.reason,
        failed_at = excluded.failed_at
"""

FORGET_FAILURE = """
    DELETE FROM public.projection_failures
    WHERE projection = %s AND position <= %s
"""

# Which requests they came from.
ORIGINS = """
    SELECT position, type, metadata ->> 'correlation_id', metadata ->> 'command_id'
    FROM public.event_log
    WHERE position > %s AND position <= %s AND type = ANY (%s)
    ORDER BY position
"""

TRACES = """
    SELECT metadata ->> 'trace'
    FROM public.event_log
    WHERE position > %s AND position <= %s AND type = ANY (%s) AND metadata ->> 'trace' IS NOT NULL
    ORDER BY position
    LIMIT %s
"""

ORIGIN = """
    SELECT position, type, metadata ->> 'correlation_id', metadata ->> 'command_id'
    FROM public.event_log
    WHERE position = %s
"""


class Fenced(MessengerError):
    """The checkpoint is not where this daemon left it: another one moved it."""


class Origin(NamedTuple):
    """An event's, as its metadata has it."""

    position: int
    type: str
    request_id: str | None
    command_id: str | None


class Superseded(Fenced):
    """The tables are of another version of the projection's code."""


class Poisoned(MessengerError):
    """An event can't be read, opened or applied."""

    def __init__(self, origin: Origin, reason: str) -> None:
        super().__init__(f"event {origin.position} ({origin.type}): {reason}")
        self.origin = origin
        self.position = origin.position
        self.type = origin.type
        self.reason = reason


# What says nothing about the events at hand.
NOT_THE_EVENT = (Stopped, Fenced, Unavailable, *DOWN)


class Reader:
    """Reads ranges of the log for one projection, opened where it needs it, without what was
    skipped. What is skipped later is behind the live projection, unless an import brings it before
    the first event: `look_at_skips` until there is one. A rebuild looks again at its end."""

    def __init__(
        self,
        projection: Projection,
        connection: Connection,
        keyring: Keyring,
        skipped: Collection[int] = (),
    ) -> None:
        self.types = frozenset(event.type for event in projection.handles)
        self._name = projection.name
        self._opens = projection.opens
        self.connection = connection
        self._keyring = keyring
        self._skipped = frozenset(skipped)

    async def look_at_skips(self) -> None:
        found = await skips.of(self.connection, self._name)
        self._skipped = frozenset(skip.position for skip in found)

    async def head(self) -> event_log.Head:
        return await event_log.head(self.connection)

    async def read(self, *, after: int, up_to: int) -> list[Recorded]:
        events = await event_log.read(
            self.connection, after=after, up_to=up_to, types=self.types, without=self._skipped
        )
        await self.open(events)
        return events

    async def received(self, events: list[Recorded], *, after: int) -> list[Recorded]:
        """What follows a position in the log's copy, as `read` would give it."""
        if after == 0:
            await self.look_at_skips()
        left = [
            recorded._replace(event=None) if recorded.position in self._skipped else recorded
            for recorded in events
        ]
        await self.open(left)
        return left

    async def origin(self, position: int) -> Origin:
        row = await (await self.connection.execute(ORIGIN, (position,))).fetchone()
        return Origin(*row) if row else Origin(position, "missing", None, None)

    async def open(self, events: list[Recorded]) -> None:
        to_open = [event for _, _, event in events if type(event) in self._opens]
        if to_open:
            await event_log.open_events(to_open, self._keyring)  # type: ignore[arg-type]


class Writer:
    """Applies batches to the tables that the connection's search path finds."""

    def __init__(self, projection: Projection, connection: Connection) -> None:
        self.projection = projection
        self.connection = connection
        self._partitions = partitions.Known()

    async def checkpoint(self) -> int:
        """Raises Superseded."""
        name, version = self.projection.name, self.projection.version
        await self.connection.execute(BEGIN_CHECKPOINT, (name, version))
        cursor = await self.connection.execute(CHECKPOINT, (name,))
        row: Any = await cursor.fetchone()
        self._refuse_other(row[1])
        return int(row[0])

    async def apply(self, events: list[Recorded], *, after: int) -> int:
        """The new checkpoint. All or nothing; raises Fenced, or what the database says."""
        steps = self.projection.plan(events)
        async with self.connection.transaction():
            await self.write(steps, after=after, up_to=events[-1].position)
        return events[-1].position

    async def write(self, steps: list[Step], *, after: int, up_to: int) -> None:
        """Inside a transaction of the caller's."""
        await self._lock(after)
        for step in steps:
            if isinstance(step, MonthlyPartitions):
                await self._partitions.ensure(self.connection, step.table, step.months)
        async with self.connection.pipeline():
            for step in steps:
                if isinstance(step, Statement) and any(step.rows.values()):
                    await self.connection.execute(step.sql, parameters(step))
            await self.connection.execute(MOVE_CHECKPOINT, (up_to, self.projection.name))

    async def _lock(self, after: int) -> None:
        """Before anything is written: what another daemon wrote would look like a bad event."""
        cursor = await self.connection.execute(LOCK_CHECKPOINT, (self.projection.name,))
        row = await cursor.fetchone()
        if row is None or row[0] != after:
            raise Fenced(f"{self.projection.name} is not at {after} any more")
        self._refuse_other(row[1])

    def _refuse_other(self, version: int) -> None:
        name, own = self.projection.name, self.projection.version
        if version != own:
            raise Superseded(
                f"the tables of {name} are of version {version}, this code is of {own}: "
                f"`messenger replay {name}` makes and switches to those of its own"
            )


def parameters(step: Statement) -> dict[str, str]:
    return {name: msgspec.json.encode(rows).decode() for name, rows in step.rows.items()}


async def one_by_one(reader: Reader, writer: Writer, *, after: int, up_to: int) -> None:
    """Applies events singly, after a batch of them broke: raises Poisoned at the one that did."""
    for position in range(after + 1, up_to + 1):
        try:
            events = await reader.read(after=position - 1, up_to=position)
            await writer.apply(events, after=position - 1)
        except NOT_THE_EVENT:
            raise
        except Exception as error:
            raise Poisoned(await reader.origin(position), first_line(error)) from error


class Pace:
    """How many events a batch takes: more as long as batches are quick."""

    def __init__(
        self, most: int = MAX_BATCH_EVENTS, target_seconds: float = BATCH_TARGET_SECONDS
    ) -> None:
        self._most = most
        self._least = min(MIN_BATCH_EVENTS, most)
        self._target_seconds = target_seconds
        self.events = min(1_000, most)

    def took(self, events: int, seconds: float) -> None:
        if seconds > 2 * self._target_seconds:
            self.events = max(self._least, self.events // 2)
        elif seconds < self._target_seconds and events >= self.events:
            self.events = min(self._most, self.events * 2)


class Projector:
    """The daemon of one projection. `run` ends only by cancelling, or raises Stopped."""

    def __init__(
        self,
        projection: Projection,
        *,
        database_url: str,
        keyring: Keyring,
        bus: Bus,
        logger: Logger,
        metrics: ProjectorMetrics | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._projection = projection
        self._metrics = metrics or ProjectorMetrics()
        self._url = database_url
        self._keyring = keyring
        self._bus = bus
        self._logger = logger.bind(projection=projection.name)
        self._pace = Pace()
        self._stands_by = ""
        self._may_have_failed = True  # an earlier process may have left a record of it
        self.position = 0
        name = projection.name
        self._batch_events = self._metrics.batch_events.labels(name)
        self._commit_seconds = self._metrics.commit_seconds.labels(name)
        self._metrics.begin(name)
        self._metrics.position.labels(name).set_function(lambda: self.position)

    async def run(self) -> None:
        failures = began = 0
        while True:
            try:
                async with self._connections() as (reader, writer):
                    self.position = await writer.checkpoint()
                    await reader.look_at_skips()
                    self._stands_by = ""
                    self._logger.info("projector_starts", position=self.position)
                    began = self.position
                    await self._keep_up_or_stop_at(reader, writer)
            except Stopped:
                raise
            except Superseded as superseded:
                await self._stand_by(str(superseded))
            except Fenced as fenced:
                # The other one goes on meanwhile; nothing is gained by racing it.
                self._interrupted("fenced")
                self._logger.info("projector_fenced", reason=str(fenced))
                await asyncio.sleep(FENCED_SECONDS)
            except (MessengerError, psycopg.Error, *DOWN) as error:
                self._interrupted("poisoned" if isinstance(error, Poisoned) else "interrupted")
                self._logger.warning("projector_interrupted", reason=first_line(error))
                failures = 0 if self.position > began else failures + 1
                await asyncio.sleep(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])

    def _interrupted(self, reason: str) -> None:
        self._metrics.interruptions.labels(self._projection.name, reason).inc()

    async def _stand_by(self, reason: str) -> None:
        """Said once, however long it takes."""
        if reason != self._stands_by:
            self._logger.warning("projector_stands_by", reason=reason)
        self._stands_by = reason
        await asyncio.sleep(STAND_BY_SECONDS)

    @asynccontextmanager
    async def _connections(self) -> AsyncIterator[tuple[Reader, Writer]]:
        name = database.process_name(f"projector {self._projection.name}")
        async with (
            await database.connect(self._url, name=name) as reading,
            await database.connect(
                self._url, name=name, statement_timeout_ms=STATEMENT_TIMEOUT_MS
            ) as writing,
        ):
            yield (
                Reader(self._projection, reading, self._keyring),
                Writer(self._projection, writing),
            )

    async def _keep_up_or_stop_at(self, reader: Reader, writer: Writer) -> None:
        """Whatever broke, if it breaks again for a single event, then it is that event."""
        try:
            await self._keep_up(reader, writer)
        except NOT_THE_EVENT:
            raise
        except Exception as error:  # noqa: BLE001 - it is told apart by trying each event
            self._logger.warning("batch_failed", reason=first_line(error), after=self.position)
            await self._find_poison(reader, writer)

    async def _find_poison(self, reader: Reader, writer: Writer) -> None:
        head = (await reader.head()).position
        up_to = min(head, self.position + MAX_BATCH_EVENTS)
        try:
            await one_by_one(reader, writer, after=self.position, up_to=up_to)
        except Poisoned as poisoned:
            await self._record(writer.connection, poisoned)
            raise

    async def _keep_up(self, reader: Reader, writer: Writer) -> None:
        async with Follower(self._bus, reader.types) as follower:
            name = self._projection.name
            self._metrics.buffered.labels(name).set_function(lambda: follower.buffered)
            while True:
                head = await self._poll(reader, writer)
                stream = buses.stream_name(head.epoch)
                copied = await follower.start(stream, after=self.position)
                if copied or not follower.follows:
                    await self._compare_copy(reader, follower)
                await self._follow(reader, writer, follower)

    async def _compare_copy(self, reader: Reader, follower: Follower) -> None:
        """What a copy has beyond the log is not history, or not any more: raises Stopped."""
        try:
            await history.check_copy(self._bus, reader.connection)
        except history.Foreign:
            pass  # no event, and the follower takes none of it
        except Unavailable:
            await follower.stop()  # what can't be compared is not followed

    async def _poll(self, reader: Reader, writer: Writer) -> event_log.Head:
        """From PostgreSQL, until there is little to do; the log's head at that time."""
        quiet_rounds = 0
        while True:
            began, position = monotonic(), self.position
            head = await reader.head()
            self._refuse_return(head)
            if self.position == 0:
                await reader.look_at_skips()
            await self._catch_up(reader, writer, head.position)
            events = self.position - position
            quiet_rounds = quiet_rounds + 1 if events < BUSY_EVENTS else 0
            if events == 0 or quiet_rounds == QUIET_ROUNDS:
                return head
            await self._pace_commits(began)

    def _refuse_return(self, head: event_log.Head) -> None:
        if head.position < self.position:
            raise Stopped(
                f"{self._projection.name} is at {self.position} but the log ends at "
                f"{head.position}: {history.REMEDY}"
            )

    async def _catch_up(self, reader: Reader, writer: Writer, head: int) -> None:
        """Up to the head, reading the next range while this one is written."""
        ahead: asyncio.Task[list[Recorded]] | None = None
        try:
            while self.position < head:
                events = await (ahead or self._read(reader, self.position, head))
                ahead = None
                if events[-1].position < head:
                    ahead = self._read(reader, events[-1].position, head)
                    await self._apply(writer, events, LOG)
                else:
                    await self._apply(writer, whole_ticks(events), LOG)
                    return
        finally:
            if ahead is not None:
                await end(ahead)

    def _read(self, reader: Reader, after: int, head: int) -> "asyncio.Task[list[Recorded]]":
        up_to = min(head, after + self._pace.events)
        return asyncio.create_task(reader.read(after=after, up_to=up_to))

    async def _follow(self, reader: Reader, writer: Writer, follower: Follower) -> None:
        """Until the follower has nothing, or so much that ranges of PostgreSQL cost less."""
        while events := await follower.take(
            after=self.position, most=self._pace.events, timeout_seconds=POLL_SECONDS
        ):
            began = monotonic()
            whole = whole_ticks(events)
            follower.give_back(events[len(whole) :])
            await self._apply(writer, await reader.received(whole, after=self.position), JETSTREAM)
            if len(events) >= BUSY_EVENTS:
                await follower.stop()
                return
            await self._pace_commits(began)

    async def _pace_commits(self, began: float) -> None:
        await asyncio.sleep(max(0.0, COMMIT_INTERVAL_SECONDS - (monotonic() - began)))

    async def _apply(self, writer: Writer, events: list[Recorded], source: str) -> None:
        if not events:
            return
        began = monotonic()
        self.position = await writer.apply(events, after=self.position)
        seconds = monotonic() - began
        self._count(len(events), seconds, source)
        self._bus.hint(f"{buses.PROJECTED}.{self._projection.name}", b"%d" % self.position)
        if self._may_have_failed:
            name = self._projection.name
            await writer.connection.execute(FORGET_FAILURE, (name, self.position))
            self._may_have_failed = False
        if self._tracer is not None or self._logger.is_debug:
            await self._tell(writer.connection, events, seconds)

    async def _tell(self, connection: Connection, events: list[Recorded], seconds: float) -> None:
        """Of each event; what it came from is read for that alone."""
        types = [event.type for event in self._projection.handles]
        bounds = (events[0].position - 1, events[-1].position, types)
        if self._logger.is_debug:
            for row in await (await connection.execute(ORIGINS, bounds)).fetchall():
                self._logger.debug("event_applied", **Origin(*row)._asdict())
        if self._tracer is not None:
            cursor = await connection.execute(TRACES, (*bounds, MAX_FOLLOWED))
            self._tracer.follow(
                f"project {self._projection.name}",
                [row[0] for row in await cursor.fetchall()],
                seconds=seconds,
                attributes={
                    "messenger.last_position": self.position,
                    "messenger.events": len(events),
                },
            )

    def _count(self, events: int, seconds: float, source: str) -> None:
        self._pace.took(events, seconds)
        self._batch_events.observe(events)
        self._commit_seconds.observe(seconds)
        self._metrics.events.labels(self._projection.name, source).inc(events)

    async def _record(self, connection: Connection, poisoned: Poisoned) -> None:
        self._logger.error(
            "event_not_applied",
            **poisoned.origin._asdict(),
            reason=poisoned.reason,
        )
        self._may_have_failed = True
        await connection.execute(
            RECORD_FAILURE,
            (
                self._projection.name,
                poisoned.position,
                poisoned.type,
                poisoned.reason,
                clock.now(),
            ),
        )
