"""Faults that end processes or hold them still: at named points, at any moment, all at once."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg

from projections import NAMES
from tests.faults import points
from tests.faults.fault import Fault, Scene, Stroke
from tests.faults.system import PROJECTORS

REPLAYED = ("chats", "messages", "unread")
ALL = ("relay", "api", "maintain", "nats", "postgres", "s3", *PROJECTORS)
HELD = ("relay", "api", "nats", "postgres", "project-messages", "project-unread")
# Whose backends: what pg_stat_activity calls them.
BACKENDS = ("messenger relay", "messenger projector messages", "messenger appender")

TERMINATE = """
    SELECT pg_terminate_backend(pid)
    FROM pg_stat_activity
    WHERE application_name LIKE 'messenger %'
"""

# Some names end with the process's id and host.
BACKENDS_OF = """
    SELECT pid
    FROM pg_stat_activity
    WHERE regexp_replace(application_name, ' [0-9]+@.*', '') = %s
"""

HOLD_HEAD = """
    SELECT position
    FROM log_head
    FOR UPDATE
"""

WAITING_APPENDER = """
    SELECT pid
    FROM pg_stat_activity
    WHERE application_name = 'messenger appender' AND wait_event_type = 'Lock'
"""

LEADING_RELAY = """
    SELECT l.pid
    FROM pg_locks AS l
    JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND a.application_name LIKE 'messenger relay %%@%%'
"""

END_SESSION = """
    SELECT pg_terminate_backend(%s)
"""

WAIT_SECONDS = 60.0
POLL_SECONDS = 0.01
TOGETHER_SECONDS = 4.0
# All that went before is in the log, and a replay rests for most of its time.
REPLAY_SECONDS = 300.0


def killed_at(point: str, prefix: str = "") -> Stroke:
    """The victim is the process's role."""

    async def stroke(scene: Scene, victim: str) -> None:
        name = prefix + victim
        pid = scene.system.pid(name)
        await scene.system.killed_at(name, point)
        scene.disturbance.is_over()
        await scene.system.replaced(name, pid)

    return stroke


def worker_killed_at(point: str) -> Stroke:
    """The API starts another one when it needs it."""

    async def stroke(scene: Scene, victim: str) -> None:
        await scene.system.killed_at(victim, point)

    return stroke


def replay_killed_at(point: str) -> Stroke:
    """And started again, to its end."""

    async def stroke(scene: Scene, victim: str) -> None:
        replaying = scene.system.begun("replay", victim)
        await scene.system.killed_at(f"replay-{victim}", point, REPLAY_SECONDS)
        await asyncio.to_thread(replaying.communicate)
        assert replaying.returncode == -signal.SIGKILL
        code, said = await scene.system.command("replay", victim)
        assert code == 0, said

    return stroke


async def killed(scene: Scene, victim: str) -> None:
    pid = scene.system.pid(victim)
    scene.system.kill(victim)
    scene.disturbance.is_over()
    await scene.system.replaced(victim, pid)


async def killed_with_all(scene: Scene, victim: str) -> None:
    await scene.system.kill_everything()
    scene.disturbance.is_over()
    await scene.system.start()


async def held(scene: Scene, victim: str) -> None:
    """With all that it has started, for a while."""
    pids = scene.system.pids(victim)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(scene.hold_seconds)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def append_waits(scene: Scene) -> AsyncIterator[int]:
    """An append is under way and can't commit before the block's end; its backend's pid."""
    with suppress(psycopg.OperationalError):  # the block may have ended this connection too
        async with await connected(scene) as connection, connection.transaction():
            await connection.execute(HOLD_HEAD)
            yield await found(scene, WAITING_APPENDER)


async def api_killed_in_append(scene: Scene, victim: str) -> None:
    """PostgreSQL commits what nobody waits for any more."""
    pid = scene.system.pid(victim)
    async with append_waits(scene):
        scene.system.kill(victim)
    scene.disturbance.is_over()
    await scene.system.replaced(victim, pid)


async def backend_killed(scene: Scene, victim: str) -> None:
    """PostgreSQL ends all the others too, and recovers; the appender's in mid-transaction."""
    if victim == "messenger appender":
        async with append_waits(scene) as pid:
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.2)
    else:
        os.kill(await found(scene, BACKENDS_OF, victim), signal.SIGKILL)


async def stopped_at_once(scene: Scene, victim: str) -> None:
    """`pg_ctl stop -m immediate`; the supervisor starts it again."""
    pid = scene.system.pid(victim)
    os.kill(pid, signal.SIGQUIT)
    scene.disturbance.is_over()
    await scene.system.replaced(victim, pid)


async def terminated(scene: Scene, victim: str) -> None:
    async with await connected(scene) as connection:
        await connection.execute(TERMINATE)


async def two_relays(scene: Scene, victim: str) -> None:
    """The one that leads is held still while it loses its lock, then goes on beside the other."""
    other = scene.system.begun("relay")
    leader = scene.system.pid("relay")
    try:
        os.kill(leader, signal.SIGSTOP)
        backend = await found(scene, LEADING_RELAY)
        async with await connected(scene) as connection:
            await connection.execute(END_SESSION, (backend,))
        await found(scene, LEADING_RELAY)
        os.kill(leader, signal.SIGCONT)
        await asyncio.sleep(TOGETHER_SECONDS)
    finally:
        os.kill(leader, signal.SIGCONT)
        other.kill()
        await asyncio.to_thread(other.communicate)


async def two_projectors(scene: Scene, victim: str) -> None:
    """A second one of each name."""
    others = scene.system.begun("project", victim)
    await asyncio.sleep(TOGETHER_SECONDS)
    assert others.poll() is None
    others.kill()
    await asyncio.to_thread(others.communicate)


async def connected(scene: Scene) -> "psycopg.AsyncConnection[Any]":
    url = scene.system.database_url
    return await psycopg.AsyncConnection.connect(url, autocommit=True)


async def found(scene: Scene, sql: Any, *arguments: str) -> int:
    """The first that there is, as soon as there is one."""
    async with asyncio.timeout(WAIT_SECONDS), await connected(scene) as connection:
        while True:
            row = await (await connection.execute(sql, arguments)).fetchone()
            if row is not None:
                return int(row[0])
            await asyncio.sleep(POLL_SECONDS)


FAULTS = (
    *(
        Fault(f"relay killed: {point}", ("relay",), killed_at(point))
        for point in (
            points.MID_WINDOW,
            points.BEFORE_ANSWER_OF_NATS,
            points.AFTER_ANSWER_OF_NATS,
        )
    ),
    *(
        Fault(f"projector killed: {point}", NAMES, killed_at(point, "project-"))
        for point in (
            points.BEFORE_ROWS,
            points.BETWEEN_ROWS_AND_CHECKPOINT,
            points.BEFORE_COMMIT,
            points.AFTER_COMMIT,
        )
    ),
    Fault(f"API killed: {points.BEFORE_APPEND}", ("api",), killed_at(points.BEFORE_APPEND)),
    Fault("API killed: during the append, before commit", ("api",), api_killed_in_append),
    *(
        Fault(f"API killed: {point}", ("api",), killed_at(point))
        for point in (points.AFTER_COMMIT_BEFORE_ANSWER, points.BETWEEN_OBJECTS_AND_EVENT)
    ),
    *(
        Fault(f"image worker killed: {point}", ("image-worker",), worker_killed_at(point))
        for point in (points.BEFORE_IMAGE, points.BEFORE_ANSWER_OF_WORKER)
    ),
    *(
        Fault(f"replay killed: {point}", REPLAYED, replay_killed_at(point))
        for point in (
            points.BETWEEN_ROWS_AND_CHECKPOINT,
            points.MID_SWAP,
            points.BEFORE_COMMIT_OF_SWAP,
            points.AFTER_COMMIT_OF_SWAP,
        )
    ),
    Fault("killed at any moment, each process", ALL, killed),
    Fault("everything killed at once, and started again", ("up",), killed_with_all),
    Fault("held still (SIGSTOP)", HELD, held),
    Fault("PostgreSQL: stopped, `-m immediate`", ("postgres",), stopped_at_once),
    Fault("PostgreSQL: a backend killed", BACKENDS, backend_killed),
    Fault("PostgreSQL: every session ended", ("postgres",), terminated),
    Fault("two relays at once", ("relay",), two_relays),
    Fault("two projectors of each name at once", ("--all",), two_projectors),
)
