"""The end of tasks, for whoever started them."""

import asyncio
from typing import Any

CANCEL_SECONDS = 0.25
MAX_CANCELS = 12


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancels them, again and again: up to Python 3.11, a `wait_for` (nats-py has many, the pool of
    connections one) that is answered at the same moment forgets that it was cancelled."""
    pending: set[asyncio.Task[Any]] = set(tasks)
    for _ in range(MAX_CANCELS):
        for task in pending:
            task.cancel()
        if pending:
            _, pending = await asyncio.wait(pending, timeout=CANCEL_SECONDS)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # who wanted to know of it has asked before
