"""The whole messenger as its users run it, `messenger up`, with what its processes use.

Processor time and peak memory come from /proc; of PostgreSQL they include its backends.
"""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.benchmarks import harness
from tests.infra.machines import SECRET_TEXT

READY_TIMEOUT_SECONDS = 60.0
READY_POLL_SECONDS = 0.1
STOP_TIMEOUT_SECONDS = 30.0
ENVIRON = {
    "MESSENGER_ENV": "test",
    "MESSENGER_RATE_LIMITS": "off",
    "MESSENGER_BCRYPT_ROUNDS": "4",
    "MESSENGER_SECRET": SECRET_TEXT,
}
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PARENT_FIELD, USER_FIELD, SYSTEM_FIELD = 1, 11, 12  # of /proc/PID/stat, after the name


class Running(msgspec.Struct, frozen=True):
    """What run.json says, and where it is."""

    api_url: str
    database_url: str
    pids: dict[str, int]
    data_dir: str = ""


class Used(NamedTuple):
    processor_seconds: float
    peak_mib: float


@asynccontextmanager
async def up() -> AsyncIterator[Running]:
    """In a data directory of its own, stopped and removed at the end."""
    with harness.scratch() as directory:
        data_dir = directory / "data"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "api.cli", "up", "--port", "0", "--data-dir", str(data_dir)),
            stdout=asyncio.subprocess.DEVNULL,
            env=plain_environ(),
        )
        try:
            yield await _ready(process, data_dir)
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_SECONDS)


def plain_environ() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESSENGER_")}
    return {**kept, **ENVIRON}


def used(running: Running) -> dict[str, Used]:
    """By name in run.json; nothing of a process that is gone."""
    parents = {pid: parent for pid in _pids() if (parent := _parent(pid)) is not None}
    return {
        name: _sum([pid, *(child for child, parent in parents.items() if parent == pid)])
        for name, pid in running.pids.items()
    }


def children_mib(pid: int) -> list[float]:
    """The peaks of a process's children."""
    return [peak_mib(child) for child in _pids() if _parent(child) == pid]


def peak_mib(pid: int) -> float:
    """0 for a process that is gone, or whose memory is not to be seen."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(match[1]) / 1024 if match else 0.0


async def _ready(process: asyncio.subprocess.Process, data_dir: Path) -> Running:
    async with asyncio.timeout(READY_TIMEOUT_SECONDS):
        while not (data_dir / "run.json").exists():
            assert process.returncode is None, "`messenger up` ended; its errors are above"
            await asyncio.sleep(READY_POLL_SECONDS)
    running = msgspec.json.decode((data_dir / "run.json").read_bytes(), type=Running)
    return msgspec.structs.replace(running, data_dir=str(data_dir))


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[PARENT_FIELD]) if fields else None


def _sum(pids: list[int]) -> Used:
    """Peaks of PostgreSQL's backends all count the shared memory: the largest stands for it."""
    ticks = sum(
        int(fields[USER_FIELD]) + int(fields[SYSTEM_FIELD]) for fields in map(_stat, pids) if fields
    )
    return Used(ticks / TICKS_PER_SECOND, max(map(peak_mib, pids), default=0.0))


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
