"""Whether the whole is well: liveness, readiness, positions and lags, metrics. All public.

A projection's lag in seconds is how long the first event that it lacks has been in the log.
That time is in the event's id: `recorded_at` is the import's own time for imported history.
"""

import asyncio
from typing import Any, Literal

import msgspec

from api.http import Reply, json_reply, log_position
from api.operations import Call, Operation
from api.parts import Parts
from api.problems import ServiceUnavailable
from infra import event_log
from infra.bus import stream_name
from infra.database import DOWN, first_line
from infra.errors import Unavailable
from projections import NAMES

DATABASE_TIMEOUT_SECONDS = 3.0
BUS_TIMEOUT_SECONDS = 1.0
LIVE_LAG_SECONDS = 1.0
METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

# The first 48 bits of a UUIDv7 are the milliseconds since 1970.
PROJECTIONS = """
    SELECT
        p.name,
        coalesce(c.position, 0) AS position,
        h.position - coalesce(c.position, 0) AS lag_events,
        greatest(0, coalesce(
            extract(epoch FROM clock_timestamp()) - ('x' || left(
                replace(e.event_id::text, '-', ''), 12
            ))::bit(48)::bigint / 1000.0,
            0
        ))::float8 AS lag_seconds,
        f.projection IS NOT NULL AS has_failed,
        to_regnamespace('rebuild_' || p.name) IS NOT NULL AND EXISTS (
            SELECT
            FROM pg_stat_activity AS a
            WHERE a.application_name = 'messenger rebuild ' || p.name
        ) AS is_rebuilding
    FROM unnest(%s::text[]) WITH ORDINALITY AS p (name, ordinal)
    CROSS JOIN log_head AS h
    LEFT JOIN projection_checkpoints AS c ON c.projection = p.name
    LEFT JOIN projection_failures AS f ON f.projection = p.name
    LEFT JOIN event_log AS e ON e.position = coalesce(c.position, 0) + 1
    ORDER BY p.ordinal
"""

State = Literal["live", "behind", "failed", "rebuilding"]


class Relay(msgspec.Struct, frozen=True):
    """`position` is JetStream's last event; null while NATS is away."""

    position: int | None


class ProjectionStatus(msgspec.Struct, frozen=True):
    name: str
    position: int
    lag_events: int
    lag_seconds: float
    state: State


class Status(msgspec.Struct, frozen=True):
    """`position` is the log's head."""

    position: int
    relay: Relay
    projections: list[ProjectionStatus]


class Health(msgspec.Struct, frozen=True):
    status: Literal["live", "ready"]


async def live(call: Call) -> Reply:
    return json_reply(Health("live"))


async def ready(call: Call) -> Reply:
    reasons = await _unfit(call.parts)
    if reasons:
        raise ServiceUnavailable("; ".join(reasons))
    return json_reply(Health("ready"))


async def status(call: Call) -> Reply:
    head, projections = await _projections(call.parts)
    relayed = await _relayed(call.parts, head.epoch)
    answer = Status(head.position, Relay(relayed), projections)
    return json_reply(answer, headers=[log_position(head.position)])


async def metrics(call: Call) -> Reply:
    parts = call.parts
    parts.metrics.show("messenger_append_queue", parts.appender.queued)
    parts.metrics.show("messenger_append_batches", parts.appender.batches)
    parts.metrics.show("messenger_append_commands", parts.appender.commands)
    parts.metrics.show("messenger_bus_up", parts.bus.connected)
    parts.metrics.show("messenger_database_up", await _show_positions(parts))
    return Reply(200, parts.metrics.text(), content_type=METRICS_TYPE)


async def _show_positions(parts: Parts) -> bool:
    try:
        head, projections = await _projections(parts)
    except (*DOWN, Unavailable):
        return False
    parts.metrics.show("messenger_log_position", head.position)
    relayed = await _relayed(parts, head.epoch)
    if relayed is not None:
        parts.metrics.show("messenger_relay_position", relayed)
    for item in projections:
        show = parts.metrics.show_projection
        show("messenger_projection_position", item.name, item.position)
        show("messenger_projection_lag_events", item.name, item.lag_events)
        show("messenger_projection_lag_seconds", item.name, item.lag_seconds)
    return True


async def _unfit(parts: Parts) -> list[str]:
    reasons = [] if parts.bus.connected else ["NATS does not answer"]
    try:
        _, projections = await _projections(parts)
    except (*DOWN, Unavailable) as error:
        return [*reasons, f"the database does not answer: {first_line(error)}"]
    limit = parts.settings.ready_lag_seconds
    return reasons + [
        f"the projection {item.name} is {item.lag_seconds:.0f} s behind ({item.state})"
        for item in projections
        if item.lag_seconds > limit
    ]


async def _projections(parts: Parts) -> tuple[event_log.Head, list[ProjectionStatus]]:
    """Raises what a database that is away raises, or Unavailable."""
    try:
        async with asyncio.timeout(DATABASE_TIMEOUT_SECONDS), parts.pool.connection() as connection:
            head = await event_log.head(connection)
            cursor = await connection.execute(PROJECTIONS, (list(NAMES),))
            return head, [_projection(*row) for row in await cursor.fetchall()]
    except TimeoutError:
        raise Unavailable("no answer in time") from None


def _projection(
    name: str,
    position: int,
    lag_events: int,
    lag_seconds: float,
    has_failed: bool,
    is_rebuilding: bool,
) -> ProjectionStatus:
    state: State = "live" if lag_seconds < LIVE_LAG_SECONDS else "behind"
    if is_rebuilding:
        state = "rebuilding"
    if has_failed:
        state = "failed"
    # The head was read a moment before.
    return ProjectionStatus(name, position, max(0, lag_events), round(lag_seconds, 3), state)


async def _relayed(parts: Parts, epoch: int) -> int | None:
    try:
        async with asyncio.timeout(BUS_TIMEOUT_SECONDS):
            return await parts.bus.last_sequence(stream_name(epoch)) or 0
    except (Unavailable, TimeoutError):
        return None


def _public(path: str, name: str, summary: str, handle: Any, **more: Any) -> Operation:
    return Operation("GET", path, name, summary, handle, token="none", **more)


OPERATIONS: tuple[Operation, ...] = (
    _public(
        "/v1/status", "status", "Positions and lags", status, answer=Status, states_position=True
    ),
    _public("/health/live", "live", "Whether this process runs", live, answer=Health),
    _public("/health/ready", "ready", "Whether this process can serve", ready, answer=Health),
    _public("/metrics", "metrics", "For Prometheus", metrics, answer=str, media_type="text/plain"),
)
