"""Runs faults one after the other on one system under load, has each judged, and draws the table.

A fault's recovery begins where its disturbance ends, and is over when another message is
acknowledged, in JetStream, in every read model and at every socket of its chat.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nats
import nats.errors
import nats.js.errors
import psycopg

from tests.faults import load as loading
from tests.faults import system as systems
from tests.faults.checker import CHECKPOINTS, EPOCH, Checker, Findings
from tests.faults.fault import Disturbance, Fault, Scene
from tests.faults.load import Load
from tests.faults.system import System

# A projector gives a silent PostgreSQL up after 125 s, however short the silence was.
RECOVERY_SECONDS = 180.0
BETWEEN_SECONDS = 1.0
POLL_SECONDS = 0.02
ANSWER_SECONDS = 5

HEAD = (
    "| fault | injected | acknowledged | lost | doubled | out of order | recovery |\n"
    "|---|---|---|---|---|---|---|"
)


class Result(NamedTuple):
    """Of one fault. `recoveries_seconds` has one for each victim."""

    name: str
    acknowledged: int
    findings: Findings
    recoveries_seconds: list[float]

    @property
    def is_good(self) -> bool:
        return self.findings.are_none

    @property
    def line(self) -> str:
        """What it did and what it found."""
        said = (
            f"{self.name}: injected {len(self.recoveries_seconds)}, "
            f"acknowledged {self.acknowledged}, lost {len(self.findings.lost)}, "
            f"doubled {len(self.findings.doubled)}, "
            f"out of order {len(self.findings.disordered)}, recovered in {self._recovery}"
        )
        return "\n  ".join([said, *self.findings.lines])

    @property
    def row(self) -> str:
        lost, doubled, disordered, _ = map(len, self.findings)
        cells = (
            self.name, len(self.recoveries_seconds), self.acknowledged, lost, doubled, disordered,
            self._recovery,
        )  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"

    @property
    def _recovery(self) -> str:
        return f"{max(self.recoveries_seconds, default=0):.1f} s"


class Suite:
    """One system and its load; `run` faults on it."""

    def __init__(self, system: System, load: Load, *, seed: int, hold_seconds: float) -> None:
        self.system = system
        self.load = load
        self._seed = seed
        self._hold_seconds = hold_seconds
        self._checker = Checker(load)

    async def run(self, fault: Fault, victims: int | None = None) -> Result:
        """On all of its victims, or so many of them."""
        chance = random.Random(f"{self._seed} {fault.name}")
        chosen = chance.sample(fault.victims, len(fault.victims))[:victims]
        before, recoveries = len(self.load.acknowledged), []
        self.load.go()
        for victim in chosen:
            await asyncio.sleep(chance.uniform(0.5, 1.5) * BETWEEN_SECONDS)
            disturbance = Disturbance()
            scene = Scene(self.system, self.load, chance, self._hold_seconds, disturbance)
            try:
                await fault.stroke(scene, victim)
                recoveries.append(await self._recovered(disturbance.ended))
            except TimeoutError as error:
                said = f"{fault.name} ({victim}): {error}\n{self.system.last_words()}"
                raise AssertionError(said) from error
            self.load.check()
        findings = await self._judged()
        acknowledged = len(self.load.acknowledged) - before
        return Result(fault.name, acknowledged, findings, recoveries)

    async def _recovered(self, ended: float | None) -> float:
        began = time.monotonic() if ended is None else ended
        async with asyncio.timeout(RECOVERY_SECONDS):
            position = await self.load.probe()
            await self._all_at(position, dict.fromkeys(self._steady(), position))
        return time.monotonic() - began

    def _steady(self) -> list[str]:
        """Those who are in the chat of all at any time."""
        return [person.user_id for person in self.load.people[:-1]]

    async def _judged(self) -> Findings:
        """What was under way comes to its end, and all copies to where the log is then."""
        await self.load.rest()
        async with asyncio.timeout(RECOVERY_SECONDS):
            head, last = await self._checker.look(self.system.database_url)
            await self._all_at(head, last)
        findings = await self._checker.judge(self.system.database_url, self.system.nats_url)
        code, said = await self.system.command("verify")
        if code != 0:
            findings.wrong.append(f"messenger verify: {said.strip()[-2000:]}")
        return findings

    async def _all_at(self, position: int, sockets: dict[str, int]) -> None:
        while behind := await self._behind(position, sockets):
            try:
                await asyncio.sleep(POLL_SECONDS)
            except asyncio.CancelledError:
                print(f"still behind {position}: {behind}", flush=True)
                raise

    async def _behind(self, position: int, sockets: dict[str, int]) -> list[str]:
        """Who is not there yet."""
        self.load.check()
        behind = [
            f"socket {device.user_id} at {device.position}"
            for device in self.load.devices
            if device.position < sockets.get(device.user_id, 0)
        ]
        try:
            return behind or await self._copies_behind(position)
        except (psycopg.OperationalError, OSError, *NATS_ERRORS) as error:
            return [str(error)]

    async def _copies_behind(self, position: int) -> list[str]:
        async with await psycopg.AsyncConnection.connect(
            self.system.database_url, autocommit=True, connect_timeout=ANSWER_SECONDS
        ) as connection:
            reached = dict(await (await connection.execute(CHECKPOINTS)).fetchall())
            epoch: Any = await (await connection.execute(EPOCH)).fetchone()
        behind = [name for name, at in reached.items() if at < position]
        return behind or await self._stream_behind(f"EVENT_LOG_{epoch[0]}", position)

    async def _stream_behind(self, stream: str, position: int) -> list[str]:
        client = await nats.connect(
            self.system.nats_url, connect_timeout=ANSWER_SECONDS, allow_reconnect=False
        )
        try:
            info = await client.jetstream().stream_info(stream)
        finally:
            await client.close()
        state = info.state
        is_whole = state.last_seq >= position and state.messages == state.last_seq
        return [] if is_whole else [f"{stream} at {state.last_seq} with {state.messages}"]


NATS_ERRORS = (nats.errors.Error, nats.js.errors.Error)


@asynccontextmanager
async def prepared(directory: Path, *, seed: int, hold_seconds: float) -> AsyncIterator[Suite]:
    async with (
        systems.running(directory) as system,
        loading.settled(system.api_url, str(seed)) as load,
    ):
        yield Suite(system, load, seed=seed, hold_seconds=hold_seconds)


def table(results: Iterable[Result]) -> str:
    return "\n".join([HEAD, *(result.row for result in results)])


def ordered(faults: Sequence[Fault], seed: int) -> list[Fault]:
    """The order in which this seed has them happen."""
    return random.Random(seed).sample(list(faults), len(faults))
