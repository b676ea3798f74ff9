"""How far each projection is, and how far behind.

The lag in seconds is how long the first event that a projection lacks has been in the log. That
time is in the event's id: `recorded_at` is the import's own time for imported history.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from infra.database import Connection

LIVE_LAG_SECONDS = 1.0

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
        f.position AS failed_at,
        f.type AS failed_type,
        f.reason,
        (
            SELECT count(*)
            FROM skipped_events AS s
            WHERE s.projection = p.name
        ) AS skipped_events,
        EXISTS (
            SELECT
            FROM pg_namespace AS n
            WHERE n.nspname ~ ('^rebuild_' || p.name || '(_[0-9]+)?$')
        ) AND EXISTS (
            SELECT
            FROM pg_stat_activity AS a
            WHERE a.application_name = 'messenger rebuild ' || p.name
        ) AS is_rebuilding
    FROM unnest(%s::text[]) WITH ORDINALITY AS p (name, ordinal)
    CROSS JOIN log_head AS h
    LEFT JOIN projection_checkpoints AS c ON c.projection = p.name
    LEFT JOIN projection_failures AS f
        ON f.projection = p.name AND f.position > coalesce(c.position, 0)
    LEFT JOIN event_log AS e ON e.position = coalesce(c.position, 0) + 1
    ORDER BY p.ordinal
"""

WAITS = """
    SELECT greatest(0, extract(epoch FROM clock_timestamp()) - ('x' || left(
        replace(event_id::text, '-', ''), 12
    ))::bit(48)::bigint / 1000.0)::float8
    FROM event_log
    WHERE position = %s
"""

State = Literal["live", "behind", "failed", "rebuilding"]


class Progress(NamedTuple):
    """`failed_at`, its type and `reason` tell of the event at which it stands still, if it does."""

    name: str
    position: int
    lag_events: int
    lag_seconds: float
    failed_at: int | None
    failed_type: str | None
    reason: str | None
    skipped_events: int
    is_rebuilding: bool

    @property
    def state(self) -> State:
        if self.failed_at is not None:
            return "failed"
        if self.is_rebuilding:
            return "rebuilding"
        return "live" if self.lag_seconds < LIVE_LAG_SECONDS else "behind"


def failed(position: int, type_name: str, reason: str) -> str:
    """In words."""
    return f"failed at {position} ({type_name}): {reason}"


async def of(connection: Connection, names: Sequence[str]) -> list[Progress]:
    """In the order of the names."""
    cursor = await connection.execute(PROJECTIONS, (list(names),))
    return [Progress(*row) for row in await cursor.fetchall()]


async def waits_seconds(connection: Connection, position: int) -> float:
    """How long the event there has been in the log; 0 if there is none."""
    row = await (await connection.execute(WAITS, (position,))).fetchone()
    return float(row[0]) if row else 0.0
