"""What `messenger up` keeps running: servers, and processes of ours."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from infra.embedded.process import Child, Log, StartError, ended, spawn

RESTART_SECONDS_MIN = 0.1
RESTART_SECONDS_MAX = 5.0
HEALTHY_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 5.0
# -P: what lies in the working directory is not for importing.
COMMAND = (sys.executable, "-P", "-m", "api.cli")


class Unit(Protocol):
    """What can be kept running: a server or a program of ours."""

    @property
    def pid(self) -> int: ...
    @property
    def log(self) -> Log: ...
    async def start(self) -> None: ...
    async def wait(self) -> int: ...
    async def stop(self) -> None: ...


@dataclass
class Program:
    """A `messenger` process."""

    arguments: Sequence[str]
    log: Log
    environ: Mapping[str, str]
    pass_fds: Sequence[int] = ()
    _child: Child | None = field(default=None, init=False)

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def _running(self) -> Child:
        if self._child is None:
            raise StartError(f"{self.arguments[0]} was never started")
        return self._child

    async def start(self) -> None:
        self._child = await spawn(
            [*COMMAND, *self.arguments],
            log=self.log,
            environ=self.environ,
            pass_fds=self.pass_fds,
        )

    async def wait(self) -> int:
        return await self._running.wait()

    async def stop(self) -> None:
        if self._child is not None and self._child.is_alive:
            await self._child.stop(signal.SIGTERM, STOP_TIMEOUT_SECONDS)


@dataclass
class Kept:
    """A unit that is started again whenever it ends, until it is stopped."""

    name: str
    unit: Unit
    changed: Callable[[], None]
    deaths: int = field(default=0, init=False)
    _keeping: asyncio.Task[None] | None = field(default=None, init=False)

    async def start(self) -> None:
        await self.unit.start()
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await self.unit.stop()

    async def _keep(self) -> None:
        """For as long as we live: a supervisor that gave up would only move the problem."""
        pause_seconds = RESTART_SECONDS_MIN
        while True:
            began = time.monotonic()
            code = await self.unit.wait()
            if time.monotonic() - began >= HEALTHY_SECONDS:
                pause_seconds = RESTART_SECONDS_MIN
            self.deaths += 1
            say(
                f"{self.name} {ended(code)}, starts again in {pause_seconds:g} s: {self.unit.log.path}"
            )
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, RESTART_SECONDS_MAX)
            await self._start_again()

    async def _start_again(self) -> None:
        try:
            await self.unit.start()
        except (StartError, OSError) as error:
            say(str(error))  # the next wait ends at once, and the next pause is longer
        else:
            self.changed()


def say(line: str) -> None:
    print(f"messenger up: {line}", file=sys.stderr, flush=True)
