"""The whole as an operator sees it: the log, its copy, the read models, and each process.

An `Observer` asks PostgreSQL and JetStream in few statements, each time it is told to; while
PostgreSQL is away it tells what is left to tell. `State` is what `messenger status` and the page at
`/ops` show, and what scripts get as JSON.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from time import monotonic
from typing import Any, Literal, NamedTuple

import msgspec

from infra import clock, history, processes, progress
from infra.bus import Bus, stream_name
from infra.database import Connection, first_line
from infra.errors import Stopped, Unavailable
from infra.processes import PROJECTOR, Process, Processes, Sighting
from infra.progress import LIVE_LAG_SECONDS, Progress
from infra.removals import REMOVED

BUS_TIMEOUT_SECONDS = 0.5
DATABASE_TIMEOUT_SECONDS = 3.0
SIZE_SECONDS = 30.0
MAX_COUNTED = 10_000
REASON_CHARACTERS = 300

EPOCH = """
    SELECT epoch
    FROM log_head
"""

# The first 48 bits of a UUIDv7 are the milliseconds since 1970.
LOG = """
    SELECT
        clock_timestamp() AS at,
        h.position,
        h.epoch,
        greatest(0, coalesce(
            extract(epoch FROM clock_timestamp()) - ('x' || left(
                replace(e.event_id::text, '-', ''), 12
            ))::bit(48)::bigint / 1000.0,
            0
        ))::float8 AS relay_lag_seconds,
        h.position - coalesce(u.position, 0) AS removals_lag_events,
        (
            SELECT count(*)
            FROM (
                SELECT
                FROM unfinished_uploads
                LIMIT %(most)s
            ) AS unfinished
        ) AS unfinished_uploads,
        (
            SELECT count(*)
            FROM (
                SELECT DISTINCT c.user_id
                FROM gateway_users AS c
                LIMIT %(most)s
            ) AS connected
        ) AS people,
        EXISTS (
            SELECT
            FROM imports AS i
            WHERE i.finished_at IS NULL
        ) AS is_half_imported
    FROM log_head AS h
    LEFT JOIN event_log AS e ON e.position = %(relayed)s::bigint + 1
    LEFT JOIN upkeep_positions AS u ON u.work = %(work)s
"""

SIZE = """
    SELECT pg_database_size(current_database())
"""

# Beside a projector for each projection.
ROLES = ("api", "relay", "maintain")

RelayState = Literal["live", "behind", "away", "stopped", "unknown"]


class Database(msgspec.Struct, frozen=True):
    is_up: bool
    reason: str | None
    size_bytes: int | None


class Relay(msgspec.Struct, frozen=True):
    """`position` is JetStream's last event; `away` is NATS, `stopped` waits for an operator."""

    position: int | None
    lag_events: int | None
    lag_seconds: float | None
    state: RelayState
    reason: str | None


class Failure(msgspec.Struct, frozen=True):
    position: int
    type: str
    reason: str


class ReadModel(msgspec.Struct, frozen=True):
    name: str
    position: int
    lag_events: int
    lag_seconds: float
    state: progress.State
    failure: Failure | None
    skipped_events: int


class Upkeep(msgspec.Struct, frozen=True):
    """What `messenger maintain` has before it: objects to remove are behind so many events."""

    removals_lag_events: int
    unfinished_uploads: int


class State(msgspec.Struct, frozen=True, kw_only=True):
    """`position` is the log's head; what PostgreSQL does not tell is null. `problems` are lines."""

    at: datetime
    epoch: int | None
    position: int | None
    database: Database
    relay: Relay
    projections: list[ReadModel]
    processes: list[Process]
    upkeep: Upkeep | None
    people_connected: int | None
    problems: list[str]


class Copy(NamedTuple):
    """What one look at JetStream found."""

    position: int | None
    state: RelayState | None
    reason: str | None


class Log(NamedTuple):
    """What one look at PostgreSQL found, besides read models and processes."""

    at: datetime
    position: int
    epoch: int
    relay_lag_seconds: float
    removals_lag_events: int
    unfinished_uploads: int
    people: int
    is_half_imported: bool


class Observer:
    """One who looks again and again; `names` are the projections that there should be."""

    def __init__(
        self, bus: Bus, names: Sequence[str], *, now: Callable[[], float] = monotonic
    ) -> None:
        self._bus = bus
        self._names = names
        self._now = now
        self._processes = Processes((*ROLES, *(PROJECTOR + name for name in names)))
        self._size_bytes: int | None = None
        self._sized_at = float("-inf")

    async def look(self, connection: Connection) -> State:
        """Raises what a database that is away raises, or Unavailable."""
        try:
            async with asyncio.timeout(DATABASE_TIMEOUT_SECONDS + BUS_TIMEOUT_SECONDS):
                # The copy first, the head last: else the copy might seem ahead.
                copy = await self._copy(connection)
                projections = await progress.of(connection, self._names)
                sighting = await processes.sight(connection)
                size_bytes = await self._size(connection)
                log = await _log(connection, copy.position)
        except TimeoutError:
            raise Unavailable("no answer in time") from None
        return self._state(log, copy, projections, sighting, size_bytes)

    def away(self, error: BaseException) -> State:
        """What is left to tell while PostgreSQL does not answer."""
        reason = first_line(error)[:REASON_CHARACTERS]
        told = [] if self._bus.connected else [self._bus.silence]
        state: RelayState = "unknown" if self._bus.connected else "away"
        return State(
            at=clock.now(),
            epoch=None,
            position=None,
            database=Database(False, reason, None),
            relay=Relay(None, None, None, state, None),
            projections=[],
            processes=self._processes.unknown(),
            upkeep=None,
            people_connected=None,
            problems=[f"PostgreSQL does not answer: {reason}", *told],
        )

    def _state(
        self,
        log: Log,
        copy: Copy,
        projections: list[Progress],
        sighting: Sighting,
        size_bytes: int | None,
    ) -> State:
        relay = _relay(log, copy)
        models = [_read_model(item) for item in projections]
        found = self._processes.look(sighting, self._now())
        return State(
            at=log.at,
            epoch=log.epoch,
            position=log.position,
            database=Database(True, None, size_bytes),
            relay=relay,
            projections=models,
            processes=found,
            upkeep=Upkeep(max(0, log.removals_lag_events), log.unfinished_uploads),
            people_connected=log.people,
            problems=[
                *([history.HALF_IMPORT] if log.is_half_imported else []),
                *_standing(relay, models),
                *_ended(found),
                *_late(relay, models),
            ],
        )

    async def _copy(self, connection: Connection) -> Copy:
        row: Any = await (await connection.execute(EPOCH)).fetchone()
        position = None
        try:
            async with asyncio.timeout(BUS_TIMEOUT_SECONDS):
                position = await self._bus.last_sequence(stream_name(row[0])) or 0
                await history.check_copy(self._bus, connection)
        except Stopped as stopped:
            return Copy(position, "stopped", str(stopped)[:REASON_CHARACTERS])
        except (Unavailable, TimeoutError):
            return Copy(None, "away", self._bus.silence)
        return Copy(position, None, None)

    async def _size(self, connection: Connection) -> int | None:
        """Looked for now and then: it takes a look at every file."""
        if self._now() - self._sized_at >= SIZE_SECONDS:
            row: Any = await (await connection.execute(SIZE)).fetchone()
            self._size_bytes, self._sized_at = int(row[0]), self._now()
        return self._size_bytes


async def _log(connection: Connection, relayed: int | None) -> Log:
    arguments = {"most": MAX_COUNTED, "relayed": relayed, "work": REMOVED}
    row: Any = await (await connection.execute(LOG, arguments)).fetchone()
    return Log(*row)


def _relay(log: Log, copy: Copy) -> Relay:
    if copy.position is None:
        return Relay(None, None, None, copy.state or "unknown", copy.reason)
    lag_events = max(0, log.position - copy.position)
    lag_seconds = round(log.relay_lag_seconds, 3) if lag_events else 0.0
    state: RelayState = "live" if lag_seconds < LIVE_LAG_SECONDS else "behind"
    return Relay(copy.position, lag_events, lag_seconds, copy.state or state, copy.reason)


def _read_model(item: Progress) -> ReadModel:
    failure = None
    if item.failed_at is not None:
        reason = (item.reason or "")[:REASON_CHARACTERS]
        failure = Failure(item.failed_at, item.failed_type or "", reason)
    return ReadModel(
        name=item.name,
        position=item.position,
        lag_events=max(0, item.lag_events),
        lag_seconds=round(item.lag_seconds, 3),
        state=item.state,
        failure=failure,
        skipped_events=item.skipped_events,
    )


def _standing(relay: Relay, models: Iterable[ReadModel]) -> Iterable[str]:
    if relay.reason is not None:
        yield relay.reason
    for item in models:
        if item.failure is not None:
            failure = item.failure
            told = progress.failed(failure.position, failure.type, failure.reason)
            yield f"the read model {item.name} stands still: {told}"


def _ended(found: Sequence[Process]) -> Iterable[str]:
    """Processes that do not what they should. Another one of the role makes up for one gone."""
    there = {one.role for one in found if one.state not in ("gone", "missing")}
    for one in found:
        if one.state == "silent":
            yield f"{one.role} ({one.process}) says nothing for {one.heard_seconds:.0f} s"
    gone = {one.role: None for one in found if one.state in ("gone", "missing")}
    yield from (f"{role} is not running" for role in gone if role not in there)


def _late(relay: Relay, models: Iterable[ReadModel]) -> Iterable[str]:
    if relay.state == "behind":
        yield f"the relay is {relay.lag_events} events behind"
    for item in models:
        if item.state == "behind":
            yield f"the read model {item.name} is {item.lag_events} events behind"
