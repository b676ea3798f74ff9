"""Skips: events that a projection does without, because an operator said so.

Only the event at which the live projection stands still can be skipped. Then and there the
checkpoint moves over it, in the transaction that records the skip and under the checkpoint's
lock: so no daemon can have applied an event that is recorded as skipped, whatever it tried
meanwhile. A skip is for ever; every rebuild leaves out the same events, and says so.
"""

from datetime import datetime
from typing import NamedTuple

from infra import checkpoints
from infra.database import DOWN, Connection, first_line
from infra.errors import MessengerError, Unavailable

# Beyond so many it is the projection that is wrong, not its events.
MAX_SKIPS = 1_000
MAX_WHY_CHARACTERS = 500

SKIPS = """
    SELECT position, type, reason, why, skipped_at
    FROM public.skipped_events
    WHERE projection = %s AND position <= coalesce(%s, position)
    ORDER BY position
"""

FAILURE = """
    SELECT position
    FROM public.projection_failures
    WHERE projection = %s
"""

# Joined to the log: what is not in it is no event, and no skip mends that.
RECORD = """
    INSERT INTO public.skipped_events (projection, position, type, reason, why, skipped_at)
    SELECT f.projection, f.position, e.type, f.reason, %(why)s, clock_timestamp()
    FROM public.projection_failures AS f
    JOIN public.event_log AS e ON e.position = f.position
    WHERE f.projection = %(projection)s AND f.position = %(position)s
    RETURNING position, type, reason, why, skipped_at
"""


class NotSkipped(MessengerError):
    """Only the event at which a projection stands still can be skipped."""


class Skip(NamedTuple):
    """`reason` is why the event could not be applied, `why` the operator's."""

    position: int
    type: str
    reason: str
    why: str
    skipped_at: datetime

    def __str__(self) -> str:
        return (
            f"without {self.position} ({self.type}: {self.reason}), "
            f"skipped on {self.skipped_at:%Y-%m-%d}: {self.why}"
        )


async def of(connection: Connection, projection: str, *, up_to: int | None = None) -> list[Skip]:
    cursor = await connection.execute(SKIPS, (projection, up_to))
    return [Skip(*row) for row in await cursor.fetchall()]


async def record(
    connection: Connection, projection: str, position: int, *, why: str
) -> tuple[Skip, bool]:
    """The skip, and whether it is new: one that is recorded already stays as it is.

    Raises NotSkipped, or Unavailable.
    """
    try:
        async with connection.transaction():
            return await _record(connection, projection, position, why)
    except DOWN as error:
        raise Unavailable(f"the database does not answer: {first_line(error)}") from error


async def _record(
    connection: Connection, projection: str, position: int, why: str
) -> tuple[Skip, bool]:
    checkpoint = await checkpoints.lock(connection, projection)
    known = await of(connection, projection)
    for skip in known:
        if skip.position == position:
            return skip, False
    if len(known) >= MAX_SKIPS:
        raise NotSkipped(
            f"{projection} skips {MAX_SKIPS} events already: its code has to be mended"
        )
    failed_at = await _failed_at(connection, projection)
    if checkpoint is None or failed_at != position or checkpoint.position != position - 1:
        reached = checkpoint.position if checkpoint else 0
        raise NotSkipped(_told(projection, position, reached, failed_at))
    arguments = {"projection": projection, "position": position, "why": why}
    row = await (await connection.execute(RECORD, arguments)).fetchone()
    if row is None:
        raise NotSkipped(f"the log has no event {position}: a gap can't be skipped")
    await checkpoints.move(connection, projection, checkpoint._replace(position=position))
    return Skip(*row), True


async def _failed_at(connection: Connection, projection: str) -> int | None:
    row = await (await connection.execute(FAILURE, (projection,))).fetchone()
    return None if row is None else int(row[0])


def _told(projection: str, position: int, checkpoint: int, failed_at: int | None) -> str:
    stands = f"it stands still at {failed_at}" if failed_at == checkpoint + 1 else "it goes on"
    return (
        f"{projection} does not stand still at {position}: it has all up to {checkpoint}, {stands}"
    )
