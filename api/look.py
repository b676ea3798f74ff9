"""Something to find out that may take long, for many who ask: one look at a time, and nobody waits
for it longer than `patience_seconds` from its beginning. It goes on meanwhile: to break off what a
PostgreSQL that fell silent does not answer takes seconds, and would hold one more connection each.
"""

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Generic, TypeVar

from infra.errors import Unavailable

Found = TypeVar("Found")


class Look(Generic[Found]):
    def __init__(self) -> None:
        self._task: asyncio.Task[Found] | None = None
        self._began = 0.0

    async def found(
        self, find: Callable[[], Coroutine[Any, Any, Found]], *, patience_seconds: float
    ) -> Found:
        """Raises Unavailable, or what finding it out raises."""
        task = self._task
        if task is None or task.done():
            task = self._task = asyncio.create_task(find())
            task.add_done_callback(_hear)
            self._began = monotonic()
        left_seconds = self._began + patience_seconds - monotonic()
        done, _ = await asyncio.wait({task}, timeout=max(0.0, left_seconds))
        if not done:
            raise Unavailable("no answer in time")
        return task.result()


def _hear(task: "asyncio.Task[Any]") -> None:
    """Nobody may be there any more to be told why it failed."""
    if not task.cancelled():
        task.exception()
