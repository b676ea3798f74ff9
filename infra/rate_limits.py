"""Token buckets in memory: so many at once, then so many a second, for each key.

A bucket is one whole number, the nanosecond at which it will be full again (GCRA), so taking
from it is exact: within any time a key never gets more than burst + rate x time. The time is
passed in. Nothing waits and nothing is stored elsewhere: each process has buckets of its own.

A full bucket is as good as none. At most MAX_KEYS are kept: the least recently used makes
room, which forgets something only if so many keys came within the time that a bucket takes
to fill.
"""

import math
from collections import OrderedDict
from fractions import Fraction
from typing import NamedTuple

MAX_KEYS = 50_000
MAX_FORGOTTEN_AT_ONCE = 2  # more than the one that comes: after a flood the table shrinks again
NANOSECONDS = 1_000_000_000


class Limit(NamedTuple):
    name: str
    per_second: float
    burst: int

    @property
    def interval_ns(self) -> int:
        return math.ceil(NANOSECONDS / Fraction(self.per_second))


class Verdict(NamedTuple):
    """`reset_ns`: until the bucket is full. `wait_ns`: until it would have given; 0 if it did."""

    limit: Limit
    remaining: int
    reset_ns: int
    wait_ns: int


class Buckets:
    """The buckets of one limit."""

    def __init__(self, limit: Limit, *, max_keys: int = MAX_KEYS) -> None:
        self._limit = limit
        self._max_keys = max_keys
        self._interval_ns = limit.interval_ns
        self._burst_ns = limit.burst * self._interval_ns
        self._full_at_ns: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at_ns)

    def take(self, key: str, cost: int, now_ns: int) -> Verdict:
        """All of `cost` or nothing."""
        known = self._full_at_ns.get(key)
        if known is None:
            self._make_room(now_ns)
        full_at_ns = now_ns if known is None or known < now_ns else known
        taken_ns = full_at_ns - now_ns + cost * self._interval_ns
        wait_ns = taken_ns - self._burst_ns
        if wait_ns <= 0:
            full_at_ns, wait_ns = now_ns + taken_ns, 0
        self._full_at_ns[key] = full_at_ns
        self._full_at_ns.move_to_end(key)
        reset_ns = full_at_ns - now_ns
        remaining = (self._burst_ns - reset_ns) // self._interval_ns
        return Verdict(self._limit, remaining, reset_ns, wait_ns)

    def wait_ns(self, key: str, cost: int, now_ns: int) -> int:
        """What `take` would say, with nothing taken."""
        full_at_ns = max(now_ns, self._full_at_ns.get(key, now_ns))
        return max(0, full_at_ns - now_ns + cost * self._interval_ns - self._burst_ns)

    def _make_room(self, now_ns: int) -> None:
        for _ in range(min(MAX_FORGOTTEN_AT_ONCE, len(self))):
            oldest = next(iter(self._full_at_ns))
            if len(self) < self._max_keys and self._full_at_ns[oldest] > now_ns:
                return
            del self._full_at_ns[oldest]
