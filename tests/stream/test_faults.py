"""What may happen to a stream while it flows: nobody loses an event, nobody gets one twice.

Real processes: `messenger up` with two of the API, whose parts are killed, stopped and wiped while
200 clients listen and others send; two API processes of which one ends; clients whose lines are
cut in the middle of a frame, or that stop reading. Longer than the short form:
FAULTS_SECONDS=600, in another order: FAULTS_SEED=2.
"""

import asyncio
import os
import random
import re
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra import clock
from tests.api import process
from tests.api.conversations import group
from tests.api.served import Api, Json, Person, good
from tests.faults.client import Client
from tests.faults.test_load import Faults
from tests.faults.test_up import Running, until
from tests.infra import daemons
from tests.infra.machines import PASSWORD, SECRET_TEXT
from tests.stream.client import connected
from tests.stream.concerns import Concerns
from tests.stream.device import Device

FAULTS_SECONDS = float(os.environ.get("FAULTS_SECONDS", "10"))
FAULTS_SEED = int(os.environ.get("FAULTS_SEED", "1"))
PEOPLE = 40
DEVICES_OF_EACH = 5
SMALL_GROUP = 8
SENDERS = 10
PAUSE_SECONDS = 0.1
BETWEEN_FAULTS_SECONDS = 1.0
CUT_PAUSE_SECONDS = 0.25
REQUEST_TIMEOUT_SECONDS = 30.0
REST_SECONDS = 60.0
ENDED_SECONDS = 1.0
SESSIONS = 5
# A machine that is busy makes some of these late; a process that waits makes all.
ROUNDS = 4
HALF = 15
MAX_RETURN_MS = 5_000
# A client that takes in little, and what is more than all buffers between take for it.
RECEIVE_BYTES = 262_144
LONG = "長" * 10_000
BATCH = 25
MAX_BATCHES = 20
SOCKETS = re.compile(r"^messenger_stream_sockets (\d+)", re.MULTILINE)


class Member(Client):
    """With the token of the first session, and more sessions."""

    @property
    def token(self) -> str:
        return self._token

    async def session(self) -> Json:
        body = {"username": self._username, "password": PASSWORD}
        return good(await self._http.post("/v1/sessions", json=body), 201)

    async def ends(self, session: Json) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        path = f"/v1/sessions/{session['session_id']}"
        response = await self._http.delete(path, headers=headers)
        assert response.status_code == 204, response.text


class World:
    """Everybody in one group, and each in small ones; the last one comes and goes."""

    def __init__(self, url: str, members: list[Member]) -> None:
        self.url = url
        self.members = members
        self.chats: list[tuple[str, list[Member]]] = []
        self.devices: list[Device] = []
        self.sent: list[int] = []

    async def settle(self) -> None:
        """Everybody is there, and nobody listens yet."""
        await asyncio.gather(*(member.sign_in() for member in self.members))
        size = SMALL_GROUP
        parts = [self.members[at : at + size] for at in range(0, PEOPLE, size)]
        for members in (self.members, *parts):
            body = {"name": "Team", "member_ids": [one.user_id for one in members[1:]]}
            made = await members[0].command("create-group", body)
            self.chats.append((made["chat_id"], members))
        self.devices = [
            Device(self.url, member.token, member.user_id, after=made["position"])
            for member in self.members
            for _ in range(DEVICES_OF_EACH)
        ]

    async def sends(self, number: int) -> None:
        chance = random.Random(number)
        while True:
            chat_id, members = chance.choice(self.chats)
            member = chance.choice(members[:-1])
            body = {"chat_id": chat_id, "content": "hello", "message_id": clock.new_id()}
            self.sent.append((await member.command("send-message", body))["position"])
            if chance.random() < 0.2:
                await member.command("mark-read", {"chat_id": chat_id})
            await asyncio.sleep(PAUSE_SECONDS)

    async def comes_and_goes(self) -> None:
        for chat_id, members in self.chats * 1000:
            owner, guest = members[0], members[-1]
            member = {"chat_id": chat_id, "user_id": guest.user_id}
            await owner.command("remove-member", member)
            await asyncio.sleep(PAUSE_SECONDS)
            added = {"chat_id": chat_id, "user_ids": [guest.user_id]}
            await owner.command("add-members", added)
            await asyncio.sleep(PAUSE_SECONDS)

    async def lines_are_cut(self) -> None:
        chance = random.Random(FAULTS_SEED)
        while True:
            await asyncio.sleep(CUT_PAUSE_SECONDS)
            chance.choice(self.devices).cut_in_mid_frame()


class StreamFaults(Faults):
    """As for the load, but for what no stream depends on."""

    @property
    def all(self) -> dict[str, Callable[[], None]]:
        killed = ("api-1", "relay", "api-2", "nats", "project-chats")
        return {
            **{f"kill -9 {name}": partial(self._kill, name) for name in killed},
            "NATS is wiped": self._wipe_nats,
            "PostgreSQL stops at once": self._stop_postgres,
        }

    def _stop_postgres(self) -> None:
        """`pg_ctl stop -m immediate`."""
        pid = self._up.run["pids"]["postgres"]
        os.kill(pid, signal.SIGQUIT)
        until(lambda: self._up.run["pids"]["postgres"] != pid)


@pytest.fixture
def up(tmp_path: Path) -> Any:
    running = Running(
        tmp_path, "--port", "0", "--workers", "2", ENV="test", BCRYPT_ROUNDS="4",
        RATE_LIMITS="off", SECRET=SECRET_TEXT, RECEIPT_FLUSH_MS="500",
    )  # fmt: skip
    running.until_ready()
    yield running
    running.stopped_by(signal.SIGTERM)


@pytest.fixture
async def world(up: Running) -> AsyncIterator[World]:
    url = up.run["api_url"]
    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_SECONDS) as http:
        world = World(url, [Member(http, f"user_{number}") for number in range(PEOPLE)])
        await world.settle()
        yield world


async def suffered(faults: dict[str, Callable[[], None]]) -> list[str]:
    """Each at least once, in any order, until the time is over."""
    chance = random.Random(FAULTS_SEED)
    done: list[str] = []
    deadline = time.monotonic() + FAULTS_SECONDS
    while not done or time.monotonic() < deadline:
        names = list(faults)
        chance.shuffle(names)
        for name in names:
            await asyncio.to_thread(faults[name])
            done.append(name)
            await asyncio.sleep(chance.uniform(0.5, 1.5) * BETWEEN_FAULTS_SECONDS)
    return done


@pytest.mark.timeout(240 + 3 * FAULTS_SECONDS)
async def test_nobody_loses_an_event_or_gets_one_twice_whatever_is_killed(
    up: Running, world: World
) -> None:
    async with daemons.tasks(*(device.run() for device in world.devices)):
        disturbing = (world.comes_and_goes(), world.lines_are_cut())
        sending = (world.sends(number) for number in range(SENDERS))
        async with daemons.tasks(*sending, *disturbing) as running:
            done = await suffered(StreamFaults(up).all)
            assert not [task for task in running if task.done()]
        concerns = await everything(up.run["database_url"], world)
    assert set(world.sent) <= {one.position for one in concerns.told}
    check_all_have_all(world, concerns)
    tell(world, done)


def check_all_have_all(world: World, concerns: Concerns) -> None:
    for device in world.devices:
        assert device.wrong == []
        must = concerns.must(device.user_id, after=device.began, up_to=concerns.head)
        assert [one for one in device.applied if one <= concerns.head] == must


async def everything(url: str, world: World) -> Concerns:
    """The log, once every device has the last of it that concerns its user."""
    concerns = Concerns()
    async with daemons.connected(url) as connection:
        head = await concerns.read(connection)
    last = {
        member.user_id: max(concerns.must(member.user_id, after=0, up_to=head))
        for member in world.members
    }

    async def have_all() -> bool:
        return all(device.position >= last[device.user_id] for device in world.devices)

    await daemons.until(have_all, "all devices have all", REST_SECONDS)
    return concerns


def tell(world: World, done: list[str]) -> None:
    ends = sum((device.ends for device in world.devices), Counter[str]())
    events = sum(len(device.applied) for device in world.devices)
    print(f"{len(world.devices)} clients, {events} events to them, {len(world.sent)} messages")
    print(f"faults: {Counter(done)}; ends of connections: {ends}")


@pytest.fixture
async def processes(
    database_url: str, nats_url: str
) -> AsyncIterator[tuple[process.ApiProcess, process.ApiProcess]]:
    """Two, with a relay between."""
    async with (
        daemons.relaying(database_url, nats_url),
        process.running(database_url, nats_url, rate_limits="off") as one,
        process.running(database_url, nats_url, rate_limits="off") as other,
    ):
        yield one, other


async def signed_in(http: httpx.AsyncClient, name: str) -> Member:
    member = Member(http, name)
    await member.sign_in()
    return member


async def test_who_is_sent_away_by_a_stopping_process_goes_on_at_another(
    database_url: str, processes: tuple[process.ApiProcess, process.ApiProcess]
) -> None:
    one, other = processes
    async with httpx.AsyncClient(base_url=one.url, timeout=REQUEST_TIMEOUT_SECONDS) as http:
        members = [await signed_in(http, name) for name in ("ann", "bob")]
        world = World(one.url, members)
        ids = [members[1].user_id]
        made = await members[0].command("create-group", {"name": "Two", "member_ids": ids})
        world.chats = [(made["chat_id"], members)]
        world.devices = [
            Device(url, member.token, member.user_id, after=0, then=one.url)
            for member in members
            for url in [other.url] * HALF
        ]
        async with daemons.tasks(*(device.run() for device in world.devices)):
            async with daemons.tasks(world.sends(0)):
                await daemons.until(all_have_more(world, 5), "all are connected")
                other.process.send_signal(signal.SIGTERM)
                await daemons.until(all_have_more(world, 20), "all are connected again")
            concerns = await everything(database_url, world)
    assert await other.process.wait() == 0
    check_all_have_all(world, concerns)
    assert [device.ends["1012"] for device in world.devices] == [1] * len(world.devices)
    delays = [delay for device in world.devices for delay in device.delays_ms]
    assert all(0 <= delay <= MAX_RETURN_MS for delay in delays)
    assert max(delays) - min(delays) > MAX_RETURN_MS / 3, "they come back all at once"


def all_have_more(world: World, events: int) -> Callable[[], Awaitable[bool]]:
    """Each has so many more than now."""
    wanted = [len(device.applied) + events for device in world.devices]

    async def have() -> bool:
        return all(
            len(device.applied) >= count
            for device, count in zip(world.devices, wanted, strict=True)
        )

    return have


async def test_an_ended_session_s_sockets_end_at_every_process_at_once(
    processes: tuple[process.ApiProcess, process.ApiProcess],
) -> None:
    one, other = processes
    async with (
        httpx.AsyncClient(base_url=one.url, timeout=REQUEST_TIMEOUT_SECONDS) as http,
        AsyncExitStack() as stack,
    ):
        member = await signed_in(http, "ann")
        kept = await stack.enter_async_context(connected(other.url, member.token))
        for _ in range(ROUNDS):
            seconds = [await ended_seconds(stack, other, member) for _ in range(SESSIONS)]
            if statistics.median(seconds) < ENDED_SECONDS:
                break
        else:
            raise AssertionError(f"never within {ENDED_SECONDS} s")
        assert kept.closed is None


async def ended_seconds(stack: AsyncExitStack, api: process.ApiProcess, member: Member) -> float:
    """How long a session's socket there goes on after its end."""
    session = await member.session()
    client = await stack.enter_async_context(connected(api.url, session["access_token"]))
    await client.start()
    began = time.monotonic()
    await member.ends(session)
    assert await client.close_code() == 4003
    return time.monotonic() - began


async def test_a_client_that_does_not_read_is_closed_and_resumes(
    api: Api, database_url: str
) -> None:
    ann, bob = [await api.person(name) for name in ("ann", "bob")]
    chat_id = await group(ann, bob)
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        line.setblocking(False)
        await asyncio.get_running_loop().sock_connect(line, address(api))
        token = bob.session["access_token"]
        async with connected(api.url, token, sock=line) as client:
            await client.start()
            client.connection.transport.pause_reading()
            sent = await until_closed(api, ann, chat_id)
            client.connection.transport.resume_reading()
            assert await client.close_code() == 4008
    first = [one for one in client.positions if one in sent]
    assert 0 < len(first) < len(sent)
    assert first == sent[: len(first)]
    async with connected(api.url, token) as client:
        await client.start(after=first[-1])
        await client.reached(sent[-1])
    assert [one for one in client.positions if one in sent] == sent[len(first) :]


def address(api: Api) -> tuple[str, int]:
    url = httpx.URL(api.url)
    assert url.port
    return url.host, url.port


async def until_closed(api: Api, sender: Person, chat_id: str) -> list[int]:
    """Sends until the process has one socket less; the messages' positions."""
    await daemons.until(partial(has_sockets, api, 1), "the process says that it has a socket")
    command = {"name": "send-message", "data": {"chat_id": chat_id, "content": LONG}}
    sent: list[int] = []
    for _ in range(MAX_BATCHES):
        response = await sender.client.post("/v1/commands", json={"commands": [command] * BATCH})
        sent += [result["position"] for result in good(response)["results"]]
        if await has_sockets(api, 0):
            return sent
    # They may be still on their way.
    await daemons.until(
        partial(has_sockets, api, 0), f"one that reads none of {len(sent)} is closed"
    )
    return sent


async def has_sockets(api: Api, count: int) -> bool:
    """By its metrics, which are a little late."""
    text = (await api.client.get("/metrics")).text
    found = SOCKETS.search(text)
    assert found, text
    return int(found[1]) == count
