"""When each line of a day was said.

Clocks are taken as UTC and only move forward. One that falls back by more than an hour has
passed midnight; by less, it was set back, and time waits for it. Each line is at least one
millisecond after the one before. A line without a clock takes the last, at the beginning of
a log the first to come.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta

from api.irc.parse import Line

CLOCK_SET_BACK_MINUTES = 60
BETWEEN_LINES = timedelta(milliseconds=1)


def times(day: date, lines: list[Line]) -> Iterator[datetime]:
    """A time for every line, strictly rising."""
    start = datetime.combine(day, time.min, UTC)
    clock = next((line.minute for line in lines if line.minute is not None), 0)
    now = start - BETWEEN_LINES
    for line in lines:
        if line.minute is not None:
            if line.minute < clock - CLOCK_SET_BACK_MINUTES:
                start += timedelta(days=1)
            clock = line.minute
        now = max(start + timedelta(minutes=clock), now + BETWEEN_LINES)
        yield now
