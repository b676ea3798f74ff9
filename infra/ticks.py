"""Where batches of events end while they are followed: after those of a tick, for every projector.

Each projector takes what has come, at its own time. If each batch ended wherever that happened to
be, two of them would hardly ever be at one position under load, and what is read as of one position
(`/v1/state`) would wait for it in vain: with 58 events/s that concern the reader, most such reads
were refused after 5 s. When an event was recorded is the same for all, so they stop at the same
places, and stay there for most of each tick.
"""

from datetime import datetime

from domain.event import Recorded

TICK_SECONDS = 0.05


def whole_ticks(events: list[Recorded]) -> list[Recorded]:
    """Without those of the last tick, of which more may come; all, if there is no other."""
    if not events:
        return events
    last = _tick(events[-1].recorded_at)
    whole = len(events)
    while whole and _tick(events[whole - 1].recorded_at) == last:
        whole -= 1
    return events[:whole] if whole else events


def _tick(at: datetime) -> int:
    return int(at.timestamp() // TICK_SECONDS)
