"""How many may do something costly at once: in all, and of one user."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from api.problems import RateLimited, ServiceUnavailable

RETRY_SECONDS = 2


class Slots:
    """Nobody waits for one: who finds none is told to come again."""

    def __init__(self, *, total: int, each: int) -> None:
        self.total = total
        self._each = each
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        return self._held.total()

    @contextmanager
    def taken(self, holder: str) -> Iterator[None]:
        """Raises ServiceUnavailable, or RateLimited where it is the holder's own doing."""
        if self._held[holder] >= self._each:
            raise RateLimited(
                f"at most {self._each} uploads of one user at once: try again",
                retry_after_seconds=RETRY_SECONDS,
            )
        if self.held >= self.total:
            raise ServiceUnavailable(
                "too many uploads at once: try again", retry_after_seconds=RETRY_SECONDS
            )
        self._held[holder] += 1
        try:
            yield
        finally:
            self._held[holder] -= 1
            if not self._held[holder]:
                del self._held[holder]
