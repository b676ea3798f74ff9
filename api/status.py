"""Whether the whole is well: liveness, readiness, positions and lags. All public."""

import asyncio
from typing import Any, Literal

import msgspec

from api.http import Reply, json_reply, log_position
from api.operations import Call, Operation
from api.parts import Parts
from api.problems import ServiceUnavailable
from infra import event_log, history, progress
from infra.bus import stream_name
from infra.database import DOWN, first_line
from infra.errors import Stopped, Unavailable
from infra.progress import Progress, State
from projections import NAMES

DATABASE_TIMEOUT_SECONDS = 3.0
BUS_TIMEOUT_SECONDS = 1.0


class Relay(msgspec.Struct, frozen=True):
    """`position` is JetStream's last event; null while NATS is away."""

    position: int | None


class Failure(msgspec.Struct, frozen=True):
    """The event at which a projection stands still."""

    position: int
    type: str
    reason: str


class ProjectionStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """`skipped_events` it does without, because an operator said so."""

    name: str
    position: int
    lag_events: int
    lag_seconds: float
    state: State
    failure: Failure | None = None
    skipped_events: int = 0


class Status(msgspec.Struct, frozen=True):
    """`position` is the log's head."""

    position: int
    relay: Relay
    projections: list[ProjectionStatus]


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    """`warnings` tell of what stands still, but not for long enough to make it unfit."""

    status: Literal["live", "ready"]
    warnings: list[str] = []


async def live(call: Call) -> Reply:
    return json_reply(Health("live"))


async def ready(call: Call) -> Reply:
    reasons, warnings = await _unfit(call.parts)
    if reasons:
        raise ServiceUnavailable("; ".join(reasons))
    return json_reply(Health("ready", warnings))


async def status(call: Call) -> Reply:
    head, projections = await projections_of(call.parts)
    relayed = await relayed_of(call.parts, head.epoch)
    answer = Status(head.position, Relay(relayed), projections)
    return json_reply(answer, headers=[log_position(head.position)])


async def _unfit(parts: Parts) -> tuple[list[str], list[str]]:
    """What makes it unfit, and what may soon."""
    reasons = [] if parts.bus.connected else ["NATS does not answer"]
    try:
        _, projections = await projections_of(parts)
    except (*DOWN, Unavailable) as error:
        return [*reasons, f"the database does not answer: {first_line(error)}"], []
    limit = parts.settings.ready_lag_seconds
    late = [item for item in projections if item.lag_seconds > limit]
    failed = [item for item in projections if item.failure is not None and item not in late]
    reasons += [_behind(item) for item in late]
    return reasons, [*(_behind(item) for item in failed), *await _what_waits(parts)]


async def _what_waits(parts: Parts) -> list[str]:
    """For an operator, while all else goes on. Whether NATS or the database is away is told
    elsewhere."""
    waits = []
    try:
        async with asyncio.timeout(BUS_TIMEOUT_SECONDS), parts.pool.connection() as connection:
            if await history.is_half_imported(connection):
                waits.append(history.HALF_IMPORT)
            await history.check_copy(parts.bus, connection)
    except Stopped as stopped:
        waits.append(str(stopped))
    except (Unavailable, TimeoutError, *DOWN):
        pass
    return waits


def _behind(item: ProjectionStatus) -> str:
    failure, told = item.failure, str(item.state)
    if failure is not None:
        told = progress.failed(failure.position, failure.type, failure.reason)
    return f"the projection {item.name} is {item.lag_seconds:.0f} s behind ({told})"


async def projections_of(parts: Parts) -> tuple[event_log.Head, list[ProjectionStatus]]:
    """Raises what a database that is away raises, or Unavailable."""
    try:
        async with asyncio.timeout(DATABASE_TIMEOUT_SECONDS), parts.pool.connection() as connection:
            head = await event_log.head(connection)
            return head, [_projection(item) for item in await progress.of(connection, NAMES)]
    except TimeoutError:
        raise Unavailable("no answer in time") from None


def _projection(item: Progress) -> ProjectionStatus:
    # The head was read a moment before.
    lag_events, lag_seconds = max(0, item.lag_events), round(item.lag_seconds, 3)
    failure = None
    if item.failed_at is not None:
        failure = Failure(item.failed_at, item.failed_type or "", item.reason or "")
    return ProjectionStatus(
        item.name,
        item.position,
        lag_events,
        lag_seconds,
        item.state,
        failure,
        item.skipped_events,
    )


async def relayed_of(parts: Parts, epoch: int) -> int | None:
    try:
        async with asyncio.timeout(BUS_TIMEOUT_SECONDS):
            return await parts.bus.last_sequence(stream_name(epoch)) or 0
    except (Unavailable, TimeoutError):
        return None


def _public(path: str, name: str, summary: str, handle: Any, **more: Any) -> Operation:
    return Operation("GET", path, name, summary, handle, token="none", **more)


def _unlimited(path: str, name: str, summary: str, handle: Any, **more: Any) -> Operation:
    return _public(path, name, summary, handle, rate_limit="none", **more)


OPERATIONS: tuple[Operation, ...] = (
    _public(
        "/v1/status", "status", "Positions and lags", status, answer=Status, states_position=True
    ),
    _unlimited("/health/live", "live", "Whether this process runs", live, answer=Health),
    _unlimited("/health/ready", "ready", "Whether this process can serve", ready, answer=Health),
)
