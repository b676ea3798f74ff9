"""`messenger up` under a steady load while its processes are killed, stopped and wiped.

A client remembers what was acknowledged and asks again, with the same key, for what was not. Each
fault is followed by nothing but time. In the end all is there, once, and all copies agree. Longer
than the short form: FAULTS_SECONDS=600.
"""

import asyncio
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import psycopg
import pytest

from infra import clock
from projections import NAMES
from tests.faults.client import Client
from tests.faults.test_up import Running, is_alive, until
from tests.infra import daemons
from tests.infra.machines import SECRET_TEXT

LOAD_SECONDS = float(os.environ.get("FAULTS_SECONDS", "20"))
PEOPLE = 4
SENDERS = 6
PAUSE_SECONDS = 0.05
REQUEST_TIMEOUT_SECONDS = 15.0
REST_SECONDS = 120.0
BETWEEN_FAULTS_SECONDS = 1.0
HANG_SECONDS = 1.5
RECHECKED_MESSAGES = 20

TERMINATE = """
    SELECT pg_terminate_backend(pid)
    FROM pg_stat_activity
    WHERE application_name LIKE 'messenger %'
"""

MESSAGES = """
    SELECT data ->> 'message_id', position
    FROM event_log
    WHERE type = 'message_sent'
"""

pytestmark = pytest.mark.timeout(480 + 2 * LOAD_SECONDS)


class Sent(NamedTuple):
    """A message that was acknowledged: by this answer, under this key."""

    sender: int
    message_id: str
    key: str
    body: dict[str, Any]
    position: int


class Load:
    """Everybody sends, reads and marks; somebody comes and goes."""

    def __init__(self, clients: list[Client], chat_id: str) -> None:
        self.clients = clients
        self.chat_id = chat_id
        self.sent: list[Sent] = []
        self.longest_seconds = 0.0
        self._is_over = False

    async def rest(self, running: "asyncio.Task[None]") -> None:
        """What is under way comes to its end: nothing is written after that."""
        self._is_over = True
        await asyncio.wait_for(running, REST_SECONDS)

    async def runs(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(SENDERS):
                group.create_task(self._sends(number % (PEOPLE - 1)))
            group.create_task(self._reads())
            group.create_task(self._comes_and_goes())

    async def _sends(self, sender: int) -> None:
        while not self._is_over:
            key, message_id = clock.new_id(), clock.new_id()
            body = {"chat_id": self.chat_id, "content": "hello", "message_id": message_id}
            began = time.monotonic()
            answer = await self.clients[sender].command("send-message", body, key)
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
            assert answer["message_id"] == message_id
            self.sent.append(Sent(sender, message_id, key, body, answer["position"]))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _reads(self) -> None:
        while not self._is_over:
            for client in self.clients[: PEOPLE - 1]:
                if self.sent:
                    body = {"chat_id": self.chat_id, "up_to_message_id": self.sent[-1].message_id}
                    await client.command("mark-delivered", body)
                await client.command("mark-read", {"chat_id": self.chat_id})
                await asyncio.sleep(PAUSE_SECONDS)

    async def _comes_and_goes(self) -> None:
        owner, guest = self.clients[0], self.clients[-1]
        while not self._is_over:
            member = {"chat_id": self.chat_id, "user_id": guest.user_id}
            await owner.command("remove-member", member)
            await asyncio.sleep(PAUSE_SECONDS)
            added = {"chat_id": self.chat_id, "user_ids": [guest.user_id]}
            await owner.command("add-members", added)
            await asyncio.sleep(PAUSE_SECONDS)


class Faults:
    """What is done to it; each leaves it to come back by itself."""

    def __init__(self, up: Running) -> None:
        self._up = up

    @property
    def all(self) -> dict[str, Callable[[], None]]:
        killed = ["relay", "api", "nats", "postgres", *(f"project-{name}" for name in NAMES)]
        return {
            **{f"kill -9 {name}": partial(self._kill, name) for name in killed},
            "NATS hangs": lambda: self._hang("nats"),
            "relay hangs": lambda: self._hang("relay"),
            "NATS is wiped": self._wipe_nats,
            "every database session is ended": self._terminate,
        }

    def _kill(self, name: str) -> None:
        """One that had just begun, as PostgreSQL went away, may have ended by itself."""
        pid = self._up.run["pids"][name]
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        until(lambda: self._up.run["pids"][name] != pid)

    def _hang(self, name: str) -> None:
        pid = self._up.run["pids"][name]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(HANG_SECONDS)
        os.kill(pid, signal.SIGCONT)

    def _wipe_nats(self) -> None:
        """The supervisor holds still meanwhile: else it might start it on what is being removed."""
        pid = self._up.run["pids"]["nats"]
        self._up.process.send_signal(signal.SIGSTOP)
        try:
            os.kill(pid, signal.SIGKILL)
            until(lambda: not is_alive(pid))
            shutil.rmtree(self._up.directory / "nats")
        finally:
            self._up.process.send_signal(signal.SIGCONT)
        until(lambda: self._up.run["pids"]["nats"] != pid)

    def _terminate(self) -> None:
        with psycopg.connect(self._up.run["database_url"], autocommit=True) as connection:
            connection.execute(TERMINATE)


@pytest.fixture
def up(tmp_path: Path) -> Any:
    running = Running(
        tmp_path, "--port", "0", ENV="test", BCRYPT_ROUNDS="4", RATE_LIMITS="off",
        SECRET=SECRET_TEXT,
    )  # fmt: skip
    running.until_ready()
    yield running
    running.stopped_by(signal.SIGTERM)


@pytest.fixture
async def load(up: Running) -> AsyncIterator[Load]:
    limits = httpx.Limits(max_connections=4 * SENDERS)
    async with httpx.AsyncClient(
        base_url=up.run["api_url"], timeout=REQUEST_TIMEOUT_SECONDS, limits=limits
    ) as http:
        clients = [Client(http, f"user_{number}") for number in range(PEOPLE)]
        for client in clients:
            await client.sign_in()
        others = [client.user_id for client in clients[1:]]
        group = await clients[0].command("create-group", {"name": "Team", "member_ids": others})
        yield Load(clients, group["chat_id"])


async def suffered(faults: dict[str, Callable[[], None]], seconds: float) -> list[str]:
    """Each at least once, in any order, until the time is over."""
    chance = random.Random(int(os.environ.get("FAULTS_SEED", "1")))
    done: list[str] = []
    deadline = time.monotonic() + seconds
    while len(done) < len(faults) or time.monotonic() < deadline:
        round_of = [name for name in faults if done.count(name) == len(done) // len(faults)]
        name = chance.choice(round_of)
        await asyncio.to_thread(faults[name])
        done.append(name)
        await asyncio.sleep(chance.uniform(0, 2 * BETWEEN_FAULTS_SECONDS))
    return done


async def test_nothing_is_lost_or_doubled_and_all_comes_back_by_itself(
    up: Running, load: Load
) -> None:
    async with daemons.tasks(load.runs()) as (running,):
        done = await suffered(Faults(up).all, LOAD_SECONDS)
        assert not running.done()
        await load.rest(running)
    assert len(done) >= len(Faults(up).all)
    run = up.run
    await daemons.projected(run["database_url"], seconds=REST_SECONDS)
    await daemons.copied(run["database_url"], run["nats_url"], seconds=REST_SECONDS)
    agreed = await daemons.check(run["database_url"], run["nats_url"])
    assert agreed.head > len(load.sent) > 0
    await acknowledged_is_present(run["database_url"], load)
    await answered_again_the_same(load)
    print(f"{len(load.sent)} messages, {agreed.rows} rows, longest {load.longest_seconds:.1f} s")


async def acknowledged_is_present(url: str, load: Load) -> None:
    """At the place that was told; and nothing is there that nobody heard of."""
    async with daemons.connected(url) as connection:
        rows = await (await connection.execute(MESSAGES)).fetchall()
    positions = {str(UUID(message_id)): position for message_id, position in rows}
    assert len(positions) == len(rows), "a message is there twice"
    for sent in load.sent:
        assert positions[sent.message_id] == sent.position
    assert len(rows) == len(load.sent)


async def answered_again_the_same(load: Load) -> None:
    """Whichever process had answered it first, and died since."""
    for sent in load.sent[:: max(1, len(load.sent) // RECHECKED_MESSAGES)]:
        answer = await load.clients[sent.sender].command("send-message", sent.body, sent.key)
        assert (answer["position"], answer["message_id"]) == (sent.position, sent.message_id)
