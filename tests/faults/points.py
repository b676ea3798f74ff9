"""The points at which a process of the system can be made to end itself, by kill -9.

The product carries no hooks: `wrap` puts them around its functions, in processes that begin at
`tests.faults.armed` or `tests.faults.image_worker` alone. A point is armed by a file named
ROLE.POINT in the directory of faults; the first process that gets there takes the file away and is
gone. ROLE is the process's command: `relay`, `api`, `project-users`, `replay-chats`.
"""

import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

DIRECTORY_VARIABLE = "FAULTS_DIRECTORY"

MID_WINDOW = "mid-window"
BEFORE_ANSWER_OF_NATS = "window sent, before its acknowledgement"
AFTER_ANSWER_OF_NATS = "window acknowledged"

BEFORE_APPEND = "before the append"
AFTER_COMMIT_BEFORE_ANSWER = "after commit, before the answer"
BETWEEN_OBJECTS_AND_EVENT = "between an image's objects and its event"

BEFORE_ROWS = "before its rows"
BETWEEN_ROWS_AND_CHECKPOINT = "between rows and checkpoint"
BEFORE_COMMIT = "before commit"
AFTER_COMMIT = "after commit"

MID_SWAP = "mid-swap"
BEFORE_COMMIT_OF_SWAP = "swapped, before commit"
AFTER_COMMIT_OF_SWAP = "swapped, after commit"

BEFORE_IMAGE = "before it decodes"
BEFORE_ANSWER_OF_WORKER = "decoded, before its answer"

CLOCK_READ_SECONDS = 0.05
# How long it may take until a process gets to a point under load.
POINT_SECONDS = 90.0


class Points:
    """Those of one process, and the clock that it goes by."""

    def __init__(self, directory: Path, role: str) -> None:
        self._armed = directory / "armed"
        self._clock = directory / "clock"
        self._role = role
        self._offset_seconds = 0.0
        self._read_at = 0.0

    def _file(self, point: str) -> Path:
        return self._armed / f"{self._role}.{point}"

    def is_armed(self, point: str) -> bool:
        return self._file(point).exists()

    def reached(self, point: str) -> None:
        """Ends this process, if that was wanted here."""
        try:
            self._file(point).unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def offset_seconds(self) -> float:
        """How far this process's clock is off."""
        if time.monotonic() - self._read_at > CLOCK_READ_SECONDS:
            self._read_at = time.monotonic()
            self._offset_seconds = float(self._clock.read_text() or 0)
        return self._offset_seconds


def role_of(arguments: list[str]) -> str:
    is_named = arguments[0] in ("project", "replay")
    return "-".join(arguments[:2]) if is_named else arguments[0]


def wrap(points: Points, command: str) -> None:
    """What this command's process runs; each imports what it needs."""
    _shift_clock(points)
    wrappers: dict[str, tuple[Callable[[Points], None], ...]] = {
        "api": (_wrap_appender, _wrap_objects, _use_our_image_worker),
        "relay": (_wrap_publishing,),
        "project": (_wrap_writer,),
        "replay": (_wrap_writer, _wrap_swap),
    }
    for wrapper in wrappers.get(command, ()):
        wrapper(points)


def _shift_clock(points: Points) -> None:
    """Every clock of the process that can be set: PostgreSQL's own is not shifted."""
    import uuid_utils
    from jwt import api_jwt

    from infra import clock

    real = time.time

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=points.offset_seconds())

    def new_id() -> str:
        seconds = real() + points.offset_seconds()
        return str(uuid_utils.uuid7(nanoseconds=int(seconds * 1e9)))

    api_jwt.datetime = Shifted  # type: ignore[misc]
    clock.now = lambda: Shifted.now(UTC)
    clock.new_id = new_id
    time.time = lambda: real() + points.offset_seconds()


def _wrap_appender(points: Points) -> None:
    from infra.appender import Appender

    call, resolve = Appender._call, Appender._resolve

    async def wrapped_call(self: Any, connection: Any, batch: Any) -> None:
        points.reached(BEFORE_APPEND)
        await call(self, connection, batch)

    def wrapped_resolve(self: Any, pending: Any, outcome: Any) -> None:
        points.reached(AFTER_COMMIT_BEFORE_ANSWER)
        resolve(self, pending, outcome)

    Appender._call = wrapped_call  # type: ignore[method-assign]
    Appender._resolve = wrapped_resolve  # type: ignore[method-assign]


def _wrap_objects(points: Points) -> None:
    from infra.objects import Objects

    put = Objects.put

    async def wrapped(self: Any, *arguments: Any, **options: Any) -> Any:
        done = await put(self, *arguments, **options)
        points.reached(BETWEEN_OBJECTS_AND_EVENT)
        return done

    Objects.put = wrapped  # type: ignore[method-assign]


def _use_our_image_worker(points: Points) -> None:
    from infra.images import pool

    pool.WORKER = "tests.faults.image_worker"
    pool.ENVIRON[DIRECTORY_VARIABLE] = os.environ[DIRECTORY_VARIABLE]


def _wrap_publishing(points: Points) -> None:
    from nats.aio.client import Client

    from infra.relay import _Window

    publish, refused = Client.publish, _Window.refused

    async def wrapped_publish(self: Any, subject: str, *arguments: Any, **options: Any) -> None:
        await publish(self, subject, *arguments, **options)
        if not subject.startswith("event."):
            return
        if points.is_armed(BEFORE_ANSWER_OF_NATS):
            await self.flush()  # else it would die before any of it had left
        if points.is_armed(MID_WINDOW):
            await self.flush()
            points.reached(MID_WINDOW)

    async def wrapped_refused(self: Any) -> int | None:
        points.reached(BEFORE_ANSWER_OF_NATS)
        answer = await refused(self)
        points.reached(AFTER_ANSWER_OF_NATS)
        return answer

    Client.publish = wrapped_publish  # type: ignore[method-assign]
    _Window.refused = wrapped_refused  # type: ignore[method-assign]


def _wrap_writer(points: Points) -> None:
    from psycopg import AsyncConnection

    from infra.projector import MOVE_CHECKPOINT, Writer

    execute, lock = AsyncConnection.execute, Writer._lock
    write, apply = Writer.write, Writer.apply

    async def wrapped_execute(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        if query is MOVE_CHECKPOINT and points.is_armed(BETWEEN_ROWS_AND_CHECKPOINT):
            async with self.pipeline():
                pass  # a sync: the rows before it are written
            points.reached(BETWEEN_ROWS_AND_CHECKPOINT)
        return await execute(self, query, *arguments, **options)

    async def wrapped_lock(self: Any, after: int) -> None:
        await lock(self, after)
        points.reached(BEFORE_ROWS)

    async def wrapped_write(self: Any, *arguments: Any, **options: Any) -> None:
        await write(self, *arguments, **options)
        points.reached(BEFORE_COMMIT)

    async def wrapped_apply(self: Any, *arguments: Any, **options: Any) -> int:
        position = await apply(self, *arguments, **options)
        points.reached(AFTER_COMMIT)
        return position

    AsyncConnection.execute = wrapped_execute  # type: ignore[method-assign]
    Writer._lock = wrapped_lock  # type: ignore[method-assign]
    Writer.write = wrapped_write  # type: ignore[method-assign]
    Writer.apply = wrapped_apply  # type: ignore[method-assign]


def _wrap_swap(points: Points) -> None:
    from infra import replay

    move, swap, swap_when_free = replay._move, replay._swap, replay._swap_when_free

    async def wrapped_move(connection: Any, projection: Any, source: str, target: str) -> None:
        await move(connection, projection, source, target)
        points.reached(MID_SWAP)  # the live tables are put aside, and nothing is in their place

    async def wrapped_swap(copy: Any) -> Any:
        done = await swap(copy)
        points.reached(BEFORE_COMMIT_OF_SWAP)
        return done

    async def wrapped_swap_when_free(copy: Any) -> Any:
        done = await swap_when_free(copy)
        points.reached(AFTER_COMMIT_OF_SWAP)
        return done

    replay._move = wrapped_move
    replay._swap = wrapped_swap
    replay._swap_when_free = wrapped_swap_when_free
