"""Faults around the processes: NATS's data, the network, PostgreSQL's disk, clocks."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nats

from tests.faults.cable import Cable
from tests.faults.fault import Fault, Scene, Stroke
from tests.faults.system import System

STREAM = "EVENT_LOG_1"
FOREIGN = "somebody else published there"
DELAY_SECONDS = (0.05, 0.25)
RESET_PAUSE_SECONDS = 0.3
# What lasts as long as anything, and is repeated for each victim, lasts so much of it.
SHORT_SHARE = 0.2
STEPS_SECONDS = {
    "an hour back": -3_600.0,
    "a minute ahead": 60.0,
    "half a day ahead": 43_200.0,
}
ROOM_BYTES = 48 * 1024 * 1024
RETRIES = 20
CABLED = ("PostgreSQL", "NATS")


async def of_jetstream(scene: Scene, what: Callable[[Any], Awaitable[Any]]) -> None:
    client = await nats.connect(scene.system.nats_url)
    try:
        await what(client.jetstream())
    finally:
        await client.close()


async def purged(scene: Scene, victim: str) -> None:
    await of_jetstream(scene, lambda jetstream: jetstream.purge_stream(STREAM))


async def deleted(scene: Scene, victim: str) -> None:
    await of_jetstream(scene, lambda jetstream: jetstream.delete_stream(STREAM))


async def while_nats_is_down(scene: Scene, change: Callable[[Path], None]) -> None:
    """kill -9, then its directory is changed, then it is started again."""
    system = scene.system
    pid = system.pid("nats")
    with system.unwatched():
        os.kill(pid, signal.SIGKILL)
        await system.until(lambda: not listens(system), "NATS is gone")
        change(system.directory / "nats")
    scene.disturbance.is_over()
    await system.replaced("nats", pid)


def listens(system: System) -> bool:
    """A killed child of one that is held still stays a zombie, and is gone all the same."""
    stat = Path(f"/proc/{system.pid('nats')}/stat")
    return stat.exists() and ") Z " not in stat.read_text()


async def wiped(scene: Scene, victim: str) -> None:
    await while_nats_is_down(scene, shutil.rmtree)


async def older(scene: Scene, victim: str) -> None:
    """Its directory as it was a while ago."""
    data = scene.system.directory / "nats"
    copy = data.with_name("nats.older")
    os.kill(scene.system.pid("nats"), signal.SIGSTOP)
    shutil.copytree(data, copy)
    os.kill(scene.system.pid("nats"), signal.SIGCONT)
    await asyncio.sleep(scene.chance.uniform(1.0, 2.0))

    def put_back(data: Path) -> None:
        shutil.rmtree(data)
        copy.rename(data)

    await while_nats_is_down(scene, put_back)


async def foreign(scene: Scene, victim: str) -> None:
    """Projectors and API go on without NATS; an operator reads the relay's line, and removes the
    stream."""
    log = scene.system.directory / "logs" / "relay.log"
    begin = log.stat().st_size

    def says_so() -> bool:
        with log.open() as file:
            file.seek(begin)
            return FOREIGN in file.read()

    async def publish(jetstream: Any) -> None:
        await jetstream.publish("event.chat.nobody.shouted", b"no event")

    await of_jetstream(scene, publish)
    await scene.system.until(says_so, "the relay says that somebody else published there")
    position = await scene.load.probe()
    await scene.system.until(lambda: heard(scene, position), "sockets go on without NATS")
    await deleted(scene, victim)


def heard(scene: Scene, position: int) -> bool:
    owner = scene.load.people[0].user_id
    mine = [device for device in scene.load.devices if device.user_id == owner]
    return all(device.position >= position for device in mine)


def cable(scene: Scene, victim: str) -> Cable:
    return scene.system.postgres if victim == "PostgreSQL" else scene.system.nats


async def slow(scene: Scene, victim: str) -> None:
    laid = cable(scene, victim)
    laid.slow(scene.chance.uniform(*DELAY_SECONDS))
    await asyncio.sleep(scene.hold_seconds)
    laid.mend()


async def resets(scene: Scene, victim: str) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + scene.hold_seconds
    while loop.time() < deadline:
        await cable(scene, victim).reset()
        await asyncio.sleep(scene.chance.uniform(0, 2 * RESET_PAUSE_SECONDS))


async def swallows(scene: Scene, victim: str) -> None:
    laid = cable(scene, victim)
    laid.swallow()
    await asyncio.sleep(scene.hold_seconds)
    laid.mend()


async def cut(scene: Scene, victim: str) -> None:
    laid = cable(scene, victim)
    await laid.cut()
    await asyncio.sleep(scene.hold_seconds)
    laid.mend()


async def clock_steps(scene: Scene, victim: str) -> None:
    """Of all our processes at once, and back; PostgreSQL's clock stays."""
    scene.system.set_clock(STEPS_SECONDS[victim])
    await asyncio.sleep(scene.hold_seconds * SHORT_SHARE)
    await scene.load.probe()
    scene.system.set_clock(0.0)


async def full_disk(scene: Scene, victim: str) -> None:
    """PostgreSQL's files are moved to a small file system, which is filled to the last byte."""
    async with on_small_disk(scene.system) as disk:
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free)
        retries = sum(person.retries for person in scene.load.people)

        def refuses() -> bool:
            return sum(person.retries for person in scene.load.people) > retries + RETRIES

        await scene.system.until(refuses, "commands are refused for want of room")
        await asyncio.sleep(scene.hold_seconds * SHORT_SHARE)
        ballast.unlink()
        await scene.load.probe()


@asynccontextmanager
async def on_small_disk(system: System) -> AsyncIterator[Path]:
    data, disk = system.directory / "postgres", system.directory / "disk"
    await system.stop()
    disk.mkdir()
    used = sum(file.stat().st_size for file in data.rglob("*") if file.is_file())
    mount(disk, used + ROOM_BYTES)
    move(data, disk / "postgres")
    data.symlink_to(disk / "postgres")
    await system.start()
    try:
        yield disk
    finally:
        await system.stop()
        data.unlink()
        move(disk / "postgres", data)
        unmount(disk)
        await system.start()


def mount(directory: Path, size_bytes: int) -> None:
    option = f"size={size_bytes}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", option, "none", str(directory)], check=True)


def unmount(directory: Path) -> None:
    subprocess.run(["umount", str(directory)], check=True)


def move(source: Path, target: Path) -> None:
    """With owners and times."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
    shutil.rmtree(source)


def can_mount() -> bool:
    with TemporaryDirectory() as directory:
        try:
            mount(Path(directory), 1024 * 1024)
        except (OSError, subprocess.CalledProcessError):
            return False
        unmount(Path(directory))
        return True


def network(name: str, stroke: Stroke) -> Fault:
    return Fault(f"the network to PostgreSQL or NATS {name}", CABLED, stroke)


FAULTS = (
    Fault("NATS: stream purged", ("nats",), purged),
    Fault("NATS: stream deleted", ("nats",), deleted),
    Fault("NATS: killed and its directory wiped", ("nats",), wiped),
    Fault("NATS: killed and an older copy in its directory", ("nats",), older),
    Fault("NATS: a foreign message in its subject", ("nats",), foreign),
    network("delays", slow),
    network("resets", resets),
    network("is cut", cut),
    network("swallows", swallows),
    Fault("PostgreSQL: its disk is full", ("postgres",), full_disk, can_mount),
    Fault("clocks step, and back", tuple(STEPS_SECONDS), clock_steps),
)
