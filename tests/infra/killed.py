"""Replays that end at a named place, by SIGKILL: a process of its own that forks one for each.

Reads an order a line on stdin: a projection, and a place with the number of its call there (`0` of
none: it runs to its end). Answers a line with the exit code, or minus the signal that ended it.
`MESSENGER_DATABASE_URL` says where.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from infra import rebuild, replay
from projections import BY_NAME
from tests.infra.daemons import keyring

# Several of them, however short the log is.
BATCH_EVENTS = 20
NOWHERE = "nowhere"
LONG_STATEMENT = "in the middle of a long statement"
MIDDLE_SECONDS = 0.2
# Before or after the call of a function of the replay; `statement` is any that it sends.
PLACES = {
    "at its start": ("infra.rebuild._prepare", "before"),
    "before a batch": ("infra.projector.Writer.apply", "before"),
    "between rows and checkpoint": ("infra.projector.Writer._lock", "after"),
    "after a batch": ("infra.projector.Writer.apply", "after"),
    "before the indexes": ("infra.rebuild.Rebuild.index", "before"),
    "after the indexes": ("infra.rebuild.Rebuild.index", "after"),
    "built": ("infra.rebuild.Rebuild.settle", "before"),
    "close to the head": ("infra.replay._approach", "after"),
    "before the swap": ("infra.replay._swap_when_free", "before"),
    "when there is room": ("infra.replay._make_room", "after"),
    "with the checkpoint locked": ("infra.checkpoints.lock", "after"),
    "before the tables are taken": ("infra.replay._take", "before"),
    "with the tables taken": ("infra.replay._take", "after"),
    "between the exchange and its commit": ("infra.checkpoints.move", "after"),
    "after the swap": ("infra.replay._swap_when_free", "after"),
    "at a statement": ("psycopg.AsyncConnection.execute", "before"),
}


def main() -> None:
    rebuild.MAX_BATCH_EVENTS = BATCH_EVENTS
    for order in sys.stdin:
        name, number, place = order.strip().split(maxsplit=2)
        child = os.fork()
        if child == 0:
            _arm(place, int(number))
            asyncio.run(_replay(name))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


async def _replay(name: str) -> None:
    url = os.environ["MESSENGER_DATABASE_URL"]
    async with keyring(url) as keys:
        await replay.replay(BY_NAME[name], url=url, keyring=keys, progress=lambda *_: None)


def _arm(place: str, number: int) -> None:
    if place == NOWHERE:
        return
    if place == LONG_STATEMENT:
        rebuild.Rebuild.settle = _sleep  # type: ignore[method-assign]
        return
    path, moment = PLACES[place]
    owner, _, name = path.rpartition(".")
    target = _found(owner)
    setattr(target, name, _deadly(getattr(target, name), moment, number))


async def _sleep(copy: rebuild.Rebuild) -> None:
    loop = asyncio.get_running_loop()
    loop.call_later(MIDDLE_SECONDS, os.kill, os.getpid(), signal.SIGKILL)
    await copy.writer.connection.execute("SELECT pg_sleep(60)")


def _found(path: str) -> Any:
    """A module, or a class in one."""
    try:
        return import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)


def _deadly(function: Callable[..., Any], moment: str, number: int) -> Callable[..., Any]:
    calls = 0

    async def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = await function(*arguments, **named)
        if calls >= number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return deadly


if __name__ == "__main__":
    main()
