"""The real system for the fault suite: `messenger up`, whose programs have points to end at, and
reach PostgreSQL and NATS by cables."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from infra.embedded.process import free_port
from projections import NAMES
from tests.faults.cable import Cable, target_of
from tests.faults.points import DIRECTORY_VARIABLE, POINT_SECONDS
from tests.faults.supervised import CABLES_VARIABLE
from tests.faults.test_up import Running, children_of, is_alive
from tests.infra.machines import SECRET_TEXT

ROOT = Path(__file__).parent.parent.parent
SUPERVISED = [sys.executable, "-P", "-m", "tests.faults.supervised", "up"]
ARMED = [sys.executable, "-P", "-m", "tests.faults.armed"]
PROJECTORS = tuple(f"project-{name}" for name in NAMES)

SETTINGS = {
    "ENV": "test",
    "BCRYPT_ROUNDS": "4",
    "RATE_LIMITS": "off",
    "SECRET": SECRET_TEXT,
    "RECEIPT_FLUSH_MS": "500",
}
POLL_SECONDS = 0.02
CHANGE_SECONDS = 60.0
ENDED_SECONDS = 300.0
SHOWN_LINES = 5


class Supervisor(Running):
    """`environ` is what its programs need for their points and cables."""

    command = SUPERVISED

    def __init__(self, directory: Path, port: int, environ: dict[str, str]) -> None:
        self.environ = environ
        super().__init__(directory, "--port", str(port), **SETTINGS)


class System:
    """`running` gives it. Names are those of run.json: `relay`, `project-users`, `postgres`."""

    def __init__(self, directory: Path, cables: dict[str, Cable]) -> None:
        self.directory = directory
        self.faults = directory / "faults"
        self.postgres, self.nats = cables.values()
        self._cables = cables
        self._port = free_port()
        (self.faults / "armed").mkdir(parents=True)
        self.set_clock(0.0)

    @property
    def run(self) -> Any:
        return self.up.run

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environ(self) -> dict[str, str]:
        """What a command of ours needs: straight to the servers, without cables."""
        told: dict[str, str] = json.loads((self.faults / "environ.json").read_text())
        return told

    @property
    def database_url(self) -> str:
        return self.environ["MESSENGER_DATABASE_URL"]

    @property
    def nats_url(self) -> str:
        return self.environ["MESSENGER_NATS_URL"]

    def pid(self, name: str) -> int:
        found: int = self.run["pids"][name]
        return found

    def pids(self, name: str) -> list[int]:
        """With what it has started: PostgreSQL's backends, the API's image workers."""
        pid = self.pid(name)
        return [pid, *sorted(children_of(pid))]

    async def start(self) -> None:
        environ = {
            # A run takes longer than a token lives else.
            "MESSENGER_ACCESS_TOKEN_SECONDS": "86400",
            "PYTHONPATH": str(ROOT),
            DIRECTORY_VARIABLE: str(self.faults),
            CABLES_VARIABLE: json.dumps({name: one.port for name, one in self._cables.items()}),
        }
        self.up = Supervisor(self.directory, self._port, environ)
        await asyncio.to_thread(self.up.until_ready)

    async def stop(self) -> None:
        if self.up.process.poll() is None:
            await asyncio.to_thread(self.up.stopped_by, signal.SIGTERM)

    async def kill_everything(self) -> None:
        below = children_of(self.up.process.pid)
        await asyncio.to_thread(self.up.stopped_by, signal.SIGKILL)
        await self.until(lambda: not any(map(is_alive, below)), "everything is gone")

    def kill(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGKILL)

    async def replaced(self, name: str, pid: int) -> None:
        """Until the supervisor has started it again."""
        await self.until(lambda: self.pid(name) != pid, f"{name} is started again")

    async def killed_at(self, role: str, point: str, seconds: float = POINT_SECONDS) -> None:
        """The next process of this role to get to the point is gone there."""
        file = self.faults / "armed" / f"{role}.{point}"
        file.touch()
        try:
            await self.until(lambda: not file.exists(), f"{role} is {point}", seconds)
        finally:
            file.unlink(missing_ok=True)

    def set_clock(self, offset_seconds: float) -> None:
        new = self.faults / "clock.new"
        new.write_text(str(offset_seconds))
        new.replace(self.faults / "clock")

    @contextmanager
    def unwatched(self) -> Any:
        """The supervisor holds still: what dies stays dead."""
        self.up.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.up.process.send_signal(signal.SIGCONT)

    def last_words(self) -> str:
        """The end of each log."""
        return "\n".join(
            "\n".join(
                [f"-- {log.stem}", *log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]]
            )
            for log in sorted((self.directory / "logs").glob("*.log"))
        )

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Exit code and all that it said."""
        started = self.begun(*arguments)
        said, _ = await asyncio.to_thread(started.communicate, timeout=ENDED_SECONDS)
        return started.returncode, said

    def begun(self, *arguments: str) -> "subprocess.Popen[str]":
        """A further process of ours."""
        return subprocess.Popen(
            [*ARMED, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environ,
        )

    async def until(
        self, holds: Callable[[], bool], what: str, seconds: float = CHANGE_SECONDS
    ) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while not holds():
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"not within {seconds:g} s: {what}")
            await asyncio.sleep(POLL_SECONDS)


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[System]:
    """Started; stopped after the block."""
    told = directory / "faults" / "environ.json"

    def servers(name: str) -> Any:
        return target_of(json.loads(told.read_text())[name])

    async with (
        Cable(lambda: servers("MESSENGER_DATABASE_URL")).laid() as postgres,
        Cable(lambda: servers("MESSENGER_NATS_URL")).laid() as nats,
    ):
        cables = {"MESSENGER_DATABASE_URL": postgres, "MESSENGER_NATS_URL": nats}
        system = System(directory, cables)
        try:
            await system.start()
            yield system
        finally:
            await system.stop()
