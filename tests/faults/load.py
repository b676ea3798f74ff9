"""Steady load for the fault suite, by clients that remember what was acknowledged.

People send, edit, react, read, come and go, become contacts and no more, and send images; every
command has a key, and is repeated with it until its answer comes. Each has sockets that are always
connected or on their way back, and go on where they were. `rest` lets what is under way come to
its end, so that all there is in the log is either acknowledged or not there.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx

from infra import clock
from tests.faults.client import SESSIONS, Client
from tests.infra.daemons import tasks
from tests.infra.pictures import encoded, quarters
from tests.stream.device import Device

PEOPLE = 6
SENDERS = 6
DEVICES_OF_EACH = 2
SEND_PAUSE_SECONDS = 0.06
PAUSE_SECONDS = 0.15
UPLOAD_PAUSE_SECONDS = 0.5
REQUEST_TIMEOUT_SECONDS = 6.0
ANSWER_SECONDS = 240.0
REST_SECONDS = 240.0
POLL_SECONDS = 0.02
EDITED_SHARE, REACTED_SHARE = 0.15, 0.3
IMAGE = encoded(quarters(40, 30), "PNG")
EMOJI = "👍"

Json = dict[str, Any]
Turn = Callable[[], Awaitable[None]]


class Acknowledged(NamedTuple):
    """What a client was told, by whom it was asked, and under which key."""

    name: str
    user_id: str
    key: str
    body: Json
    answer: Json


class Person(Client):
    """One who remembers."""

    def __init__(self, http: httpx.AsyncClient, username: str) -> None:
        super().__init__(http, username, answer_seconds=ANSWER_SECONDS)
        self.acknowledged: list[Acknowledged] = []

    @property
    def token(self) -> str:
        return self._token

    async def does(self, name: str, **body: Any) -> Json:
        key = clock.new_id()
        answer = await self.command(name, body, key)
        self.acknowledged.append(Acknowledged(name, self.user_id, key, body, answer))
        return answer

    async def uploads(self, chat_id: str, message_id: str) -> Json:
        body = {"chat_id": chat_id, "message_id": message_id}
        content = {"data": body, "files": {"file": ("cat.png", IMAGE)}}
        answer = await self._until_answered("/v1/attachments", content)
        self.acknowledged.append(Acknowledged("upload", self.user_id, "", body, answer))
        return answer

    async def _understood(self, path: str, response: httpx.Response) -> Json | None:
        """A token may be over: clocks step."""
        if response.status_code == 401 and path != SESSIONS:
            await self._log_in()
            return None
        return await super()._understood(path, response)


class Load:
    """`settled` gives it, at rest: `go`, and `rest`."""

    def __init__(self, url: str, http: httpx.AsyncClient, seed: str) -> None:
        self.people = [Person(http, f"user_{number}") for number in range(PEOPLE)]
        self.devices: list[Device] = []
        self.chats: list[tuple[str, list[Person]]] = []
        self.running: list[asyncio.Task[None]] = []
        self._url = url
        self._seed = seed
        self._going = asyncio.Event()
        self._busy = 0
        self._is_guest_in = True
        self._acquaintance = 0

    @property
    def acknowledged(self) -> list[Acknowledged]:
        return [one for person in self.people for one in person.acknowledged]

    def go(self) -> None:
        self._going.set()

    def check(self) -> None:
        """Raises what ended a client, if anything did."""
        for task in self.running:
            if task.done():
                task.result()

    async def rest(self) -> None:
        self._going.clear()
        async with asyncio.timeout(REST_SECONDS):
            while self._busy:
                self.check()
                await asyncio.sleep(POLL_SECONDS)

    async def probe(self) -> int:
        """The position of one more message of the first to all."""
        sent = await self.people[0].does("send-message", chat_id=self.chats[0][0], content="?")
        return int(sent["position"])

    async def settle(self) -> None:
        """Everybody in one group, whose last member comes and goes, and in one of two others."""
        await asyncio.gather(*(person.sign_in() for person in self.people))
        half = PEOPLE // 2
        made: Json = {}
        for members in (self.people, self.people[:half], self.people[half:]):
            ids = [one.user_id for one in members[1:]]
            made = await members[0].command("create-group", {"name": "Team", "member_ids": ids})
            self.chats.append((made["chat_id"], members))
        self.devices = [
            Device(self._url, person.token, person.user_id, after=made["position"])
            for person in self.people
            for _ in range(DEVICES_OF_EACH)
        ]

    async def runs(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(SENDERS):
                group.create_task(self._repeat(self._sender(number), SEND_PAUSE_SECONDS))
            group.create_task(self._repeat(self._reader(), PAUSE_SECONDS))
            group.create_task(self._repeat(self._guest_moves, PAUSE_SECONDS))
            group.create_task(self._repeat(self._acquaintance_moves, PAUSE_SECONDS))
            group.create_task(self._repeat(self._uploads, UPLOAD_PAUSE_SECONDS))

    async def _repeat(self, turn: Turn, pause_seconds: float) -> None:
        while True:
            await self._going.wait()
            self._busy += 1
            try:
                await turn()
            finally:
                self._busy -= 1
            await asyncio.sleep(pause_seconds)

    def _chance(self, name: str) -> random.Random:
        return random.Random(f"{self._seed} {name}")

    def _sender(self, number: int) -> Turn:
        chance = self._chance(f"sender {number}")

        async def turn() -> None:
            chat_id, members = chance.choice(self.chats)
            sender = chance.choice(members[:-1])
            body = {"chat_id": chat_id, "content": f"hello {chance.random()}"}
            if chance.random() < 0.5:  # the others are known by their key alone
                body["message_id"] = clock.new_id()
            sent = await sender.does("send-message", **body)
            luck, message_id = chance.random(), sent["message_id"]
            if luck < EDITED_SHARE:
                content = f"better {chance.random()}"
                await sender.does("edit-message", message_id=message_id, content=content)
            elif luck < REACTED_SHARE:
                reacting = chance.choice(members[:-1])
                await reacting.does("add-reaction", message_id=message_id, emoji=EMOJI)

        return turn

    def _reader(self) -> Turn:
        chance = self._chance("reader")

        async def turn() -> None:
            chat_id, members = chance.choice(self.chats)
            await chance.choice(members[:-1]).does("mark-read", chat_id=chat_id)

        return turn

    async def _guest_moves(self) -> None:
        chat_id, members = self.chats[0]
        owner, guest = members[0], members[-1].user_id
        if self._is_guest_in:
            await owner.does("remove-member", chat_id=chat_id, user_id=guest)
        else:
            await owner.does("add-members", chat_id=chat_id, user_ids=[guest])
        self._is_guest_in = not self._is_guest_in

    async def _acquaintance_moves(self) -> None:
        one, other = self.people[:2]
        match self._acquaintance % 3:
            case 0:
                await one.does("request-contact", user_id=other.user_id)
            case 1:
                await other.does("accept-contact", user_id=one.user_id)
            case _:
                await one.does("remove-contact", user_id=other.user_id)
        self._acquaintance += 1

    async def _uploads(self) -> None:
        chat_id, members = self.chats[1]
        message_id = clock.new_id()
        image = await members[0].uploads(chat_id, message_id)
        await members[0].does(
            "send-message",
            chat_id=chat_id,
            message_id=message_id,
            content="",
            attachment_ids=[image["attachment_id"]],
        )


@asynccontextmanager
async def settled(url: str, seed: str) -> AsyncIterator[Load]:
    """What goes wrong in it is raised at the end of the block at the latest; see `failed`."""
    limits = httpx.Limits(max_connections=4 * SENDERS)
    async with httpx.AsyncClient(
        base_url=url, timeout=REQUEST_TIMEOUT_SECONDS, limits=limits
    ) as http:
        load = Load(url, http, seed)
        await load.settle()
        async with tasks(load.runs(), *(device.run() for device in load.devices)) as running:
            load.running = running
            yield load
