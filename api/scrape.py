"""`GET /metrics`: what this process counts, with where the log and all that follow it are.

While PostgreSQL says nothing the page comes all the same at once, with what was known.
Where `MESSENGER_METRICS_PEERS` names processes (as under `messenger up`), the page is that of all of
them, whichever API process answers: each line says whose it is.
"""

import asyncio
from contextlib import suppress
from functools import partial

from api.http import Reply
from api.metrics import Metrics
from api.operations import Call, Operation
from api.parts import Parts
from api.read_models import MAX_WAITING_READS
from api.status import ProjectionStatus, projections_of, relayed_of
from infra import passwords, pipelined, progress, scraping
from infra.database import DOWN, Pool
from infra.errors import Unavailable
from infra.event_log import Head

PATIENCE_SECONDS = 0.8  # with each of the two servers, before the page goes without


async def metrics(call: Call) -> Reply:
    """However many ask at once, it is found out once: it asks the database, and other processes."""
    counted = call.parts.metrics
    if counted.asking is None or counted.asking.done():
        counted.asking = asyncio.create_task(_page(call.parts))
    page = await asyncio.shield(counted.asking)
    return Reply(200, page, content_type=scraping.METRICS_TYPE.encode())


async def _page(parts: Parts) -> bytes:
    peers = parts.settings.metrics_peers
    return await (own(parts) if peers is None else scraping.gathered(scraping.peers(peers)))


async def own(parts: Parts) -> bytes:
    parts.metrics.show("messenger_append_queue", parts.appender.queued)
    parts.metrics.show("messenger_append_batches", parts.appender.batches)
    parts.metrics.show("messenger_append_commands", parts.appender.commands)
    head = await _seen(parts)
    parts.metrics.show("messenger_database_up", head is not None)
    if head is not None:
        with suppress(*DOWN, Unavailable):
            await parts.metrics.at_relay.found(
                partial(_show_relay, parts, head), patience_seconds=PATIENCE_SECONDS
            )
    return parts.metrics.text()


async def _seen(parts: Parts) -> Head | None:
    """None while the database is away."""
    try:
        return await parts.metrics.at_log.found(
            partial(_show_positions, parts), patience_seconds=PATIENCE_SECONDS
        )
    except (*DOWN, Unavailable):
        return None


def watch_queues(parts: Parts) -> None:
    """What has a limit, and how much of it is taken."""
    watch, settings = parts.metrics.queues.watch, parts.settings
    watch("append", lambda: parts.appender.queued, settings.append_queue_limit)
    watch("reads", lambda: parts.read_models.waiting, MAX_WAITING_READS)
    watch("passwords", lambda: parts.passwords.waiting, passwords.MAX_WAITING)
    watch("uploads", lambda: parts.upload_slots.held, parts.upload_slots.total)
    watch("images", lambda: parts.images.under_way, parts.images.limit)
    watch("write connections", lambda: _waiting(parts.pool))
    watch("read connections", lambda: _waiting(parts.read_models.pool))


async def _show_positions(parts: Parts) -> Head:
    """Raises what a database that is away raises, or Unavailable."""
    show = parts.metrics.show
    head, projections = await projections_of(parts)
    show("messenger_log_position", head.position)
    show("messenger_log_epoch", head.epoch)
    for item in projections:
        _show_projection(parts.metrics, item)
    parts.metrics.show_failures(
        (item.name, str(item.failure.position), item.failure.type, item.failure.reason)
        for item in projections
        if item.failure is not None
    )
    return head


async def _show_relay(parts: Parts, head: Head) -> None:
    """While NATS is away, by what was there when it was last asked."""
    show = parts.metrics.show
    relayed = await relayed_of(parts, head.epoch)
    if relayed is not None:
        parts.metrics.relayed = relayed
    relayed = parts.metrics.relayed
    if relayed is None:
        return
    async with parts.pool.connection() as connection:
        lag_seconds = await progress.waits_seconds(connection, relayed + 1)
    show("messenger_relay_position", relayed)
    show("messenger_relay_lag_events", max(0, head.position - relayed))
    show("messenger_relay_lag_seconds", lag_seconds)


def _show_projection(metrics: Metrics, item: ProjectionStatus) -> None:
    show, name = metrics.show_projection, item.name
    show("messenger_projection_position", name, item.position)
    show("messenger_projection_lag_events", name, item.lag_events)
    show("messenger_projection_lag_seconds", name, item.lag_seconds)
    show("messenger_projection_skipped_events", name, item.skipped_events)
    show("messenger_projection_rebuilding", name, item.state == "rebuilding")


def _waiting(pool: Pool | pipelined.Pool) -> int:
    return pool.get_stats().get("requests_waiting", 0)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/metrics",
        "metrics",
        "For Prometheus",
        metrics,
        answer=str,
        media_type="text/plain",
        token="none",
        rate_limit="none",
    ),
)
