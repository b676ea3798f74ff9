"""The law: a state and the events after it are the fresh state, for every client.

Five people with seven clients send every command there is, to two processes, over HTTP and over
their sockets, one by one and several at once. The clients come, break off at any moment, go on
from their own position at either process, begin anew. At any moment, and for all of them in the
end: each got exactly the events that the log says concern its user (`concerns`), each position
once and rising, and what its reducer made of them is what `GET /v1/state` answers.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from api.stream import catch_up, gateway
from infra import event_log
from infra.database import Connection
from tests.api.served import PASSWORD, Api, Json, bearer, good, serving
from tests.infra import daemons
from tests.stream.concerns import Concerns
from tests.stream.reducer import DELETED_USER
from tests.stream.reference import Gone, Reference

NAMES = ("ann", "bob", "cat", "dan", "eve")
# Some have two devices.
CLIENTS = (0, 1, 2, 3, 4, 0, 1)
PROCESSES = 2
STEPS = 60
EXAMPLES = max(5, settings().max_examples // 8)
# Told again, what happens at once may go otherwise: a failure brings along what was done instead.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
RECENT = 8
SLOTS = 12
ROUNDS = 20
HISTORY_SECONDS = 90.0
REFUSALS = (400, 401, 403, 404, 409)
# Ended in all processes, within this.
ENDED_SECONDS = 1.0
WORDS = ("one", "two", "three", "four")
EMOJI = ("👍", "🎉", ":wave:")
AVATARS = (None, "https://example.org/a.png", "https://example.org/b.png")
ROLES = ("admin", "member")

numbers = count()
slots = st.integers(0, SLOTS - 1)


class Do(NamedTuple):
    """A command of somebody's; the slots say of what there is then. By socket, or to a process."""

    actor: int
    name: str
    slots: tuple[int, int, int]
    way: int


class Act(NamedTuple):
    """Something a client does at a process; `how` is which way of several."""

    client: int
    name: str
    process: int
    how: int


class AtOnce(NamedTuple):
    all: list[Do | Act]


Step = Do | Act | AtOnce

# What is named more often comes more often.
COMMANDS = (
    *["send-message"] * 8,
    *["add-reaction", "edit-message", "delete-message", "add-members"] * 3,
    *["mark-read", "remove-member", "leave-group", "request-contact", "accept-contact"] * 2,
    *["open-direct-chat", "update-profile", "create-group", "change-role"] * 2,
    "remove-reaction",
    "mark-delivered",
    "remove-contact",
    "block-contact",
    "unblock-contact",
    "update-group",
    "delete-group",
    "transfer-ownership",
    "set-status",
    "change-password",
)
ACTS = (
    *["received", "take"] * 5,
    *["resume", "cut"] * 3,
    *["leave", "begin", "start", "fetch", "check"] * 2,
)
MOVING = ("add-members", "remove-member", "leave-group", "send-message", "mark-read")

ways = st.integers(0, PROCESSES)
actors = st.integers(0, len(NAMES) - 1)
commands = st.builds(Do, actors, st.sampled_from(COMMANDS), st.tuples(slots, slots, slots), ways)
acts = st.builds(
    Act,
    st.integers(0, len(CLIENTS) - 1),
    st.sampled_from(ACTS),
    st.integers(0, PROCESSES - 1),
    st.integers(0, 2),
)
# Everybody at the same chat, whoever is in it.
rushes = st.integers(SLOTS, SLOTS + 5).flatmap(
    lambda chat: st.lists(
        st.builds(
            Do, actors, st.sampled_from(MOVING), st.tuples(st.just(chat), slots, slots), ways
        ),
        min_size=3,
        max_size=6,
    )
)
endings = st.builds(Do, actors, st.just("delete-account"), st.tuples(slots, slots, slots), ways)
several = st.lists(st.one_of(commands, acts), min_size=2, max_size=6)
together = st.builds(AtOnce, several | st.builds(list.__add__, rushes, st.lists(acts, max_size=3)))
steps: st.SearchStrategy[Step] = st.one_of(commands, commands, acts, together)
histories: st.SearchStrategy[list[Step]] = st.builds(
    lambda before, ending, after: [*before, *ending, *after],
    st.lists(steps, min_size=STEPS * 2 // 3, max_size=STEPS * 2 // 3),
    st.lists(st.builds(AtOnce, st.tuples(endings, commands, acts).map(list)), max_size=1),
    st.lists(steps, min_size=STEPS // 3, max_size=STEPS // 3),
)


class World(NamedTuple):
    """Two processes on one database."""

    apis: list[Api]
    connection: Connection

    @property
    def clients(self) -> list[httpx.AsyncClient]:
        return [api.client for api in self.apis]


class History:
    """Five new people, and what they do to each other."""

    def __init__(self, world: World, head: int) -> None:
        self.world = world
        self.number = next(numbers)
        self.concerns = Concerns(head)
        self.passwords = [PASSWORD] * len(NAMES)
        self.sessions: list[Json] = []
        self.clients: list[Reference] = []
        self.chats: list[str] = []
        self.messages: dict[str, list[str]] = {}
        self.gone: set[int] = set()
        self.lines: list[str] = []
        self.checks = 0
        self._reading = asyncio.Lock()

    # ---------------------------------------------------------------------- the cast

    async def open(self) -> None:
        for name in NAMES:
            body = {"username": f"{name}_{self.number}", "password": PASSWORD}
            good(await self.world.clients[0].post("/v1/commands/register-user", json=body))
            session = good(await self.world.clients[0].post("/v1/sessions", json=body), 201)
            self.sessions.append(session)
        self.clients = [Reference(self.sessions[n], self.world.clients) for n in CLIENTS]
        # Some see all from the begin; the others begin with what the cast has done.
        for number, client in enumerate(self.clients[:3]):
            await client.begin(number % PROCESSES)
        await self._know_each_other()
        for number, client in enumerate(self.clients[3:]):
            await client.begin(number % PROCESSES, number % 3)

    async def _know_each_other(self) -> None:
        """The first three are contacts, and in a group with the fourth."""
        for one, other in ((0, 1), (0, 2), (1, 2)):
            await self._command(one, "request-contact", {"user_id": self._id(other)}, 0)
            await self._command(other, "request-contact", {"user_id": self._id(one)}, 1)
        members = [self._id(number) for number in (1, 2, 3)]
        await self._command(0, "create-group", {"name": "one", "member_ids": members}, 1)
        await self._command(0, "open-direct-chat", {"user_id": self._id(1)}, 0)

    def _id(self, slot: int) -> str:
        user_id: str = self.sessions[slot % len(NAMES)]["user_id"]
        return user_id

    # ---------------------------------------------------------------------- commands

    async def do(self, step: Step) -> None:
        self.lines.append(str(step))
        match step:
            case Do():
                await self._do(step)
            case Act():
                await self._act(step)
            case AtOnce():
                await asyncio.gather(*self._at_once(step.all))
        await self._head()

    def _at_once(self, some: list[Do | Act]) -> list[Coroutine[Any, Any, None]]:
        """Of each client one act at most: it is one device."""
        acting = {one.client: one for one in some if isinstance(one, Act)}
        doing = [one._replace(way=one.way % PROCESSES) for one in some if isinstance(one, Do)]
        return [self._do(one) for one in doing] + [self._act(one) for one in acting.values()]

    async def _do(self, do: Do) -> None:
        if do.name == "delete-account" and self.gone:
            return
        body = self._body(do)
        if body is None or not await self._command(do.actor, do.name, body, do.way):
            return
        if do.name == "delete-account":
            self.gone.add(do.actor)
        if do.name == "change-password":
            self.passwords[do.actor] = body["new_password"]

    async def _command(self, actor: int, name: str, body: Json, way: int) -> bool:
        answer = await self._sent(actor, name, body, way)
        self.lines.append(f"  {name} {body} {answer}")
        if "problem" in answer:
            assert answer["problem"]["status"] in REFUSALS, answer
            return False
        if "chat_id" in answer and answer["chat_id"] not in self.chats:
            self.chats.append(answer["chat_id"])
        if "message_id" in answer:
            self.messages.setdefault(body["chat_id"], []).append(answer["message_id"])
        return True

    async def _sent(self, actor: int, name: str, body: Json, way: int) -> Json:
        socket = self.clients[actor].client
        if way == PROCESSES and socket is not None and socket.closed is None:
            return await socket.command(name, **body)
        client = self.world.clients[way % PROCESSES]
        response = await client.post(
            f"/v1/commands/{name}", json=body, headers=bearer(self.sessions[actor])
        )
        answer: Json = response.json()
        return answer if response.status_code == 200 else {"problem": answer}

    def _body(self, do: Do) -> Json | None:
        """None where there is nothing of what it takes."""
        first, second, third = do.slots
        mine = self.concerns.chats_of(self._id(do.actor)) if first < SLOTS else []
        chats = mine or self.chats
        chat_id = chats[first % len(chats)]
        other = self._id(do.actor + 1 + second % (len(NAMES) - 1))
        messages = self.messages.get(chat_id, [])[-RECENT:]
        message_id = messages[-1 - third % len(messages)] if messages else None
        word = WORDS[second % len(WORDS)]
        match do.name:
            case "send-message":
                reply = {"reply_to_id": message_id} if message_id and third % 2 else {}
                return {"chat_id": chat_id, "content": word, **reply}
            case "edit-message" | "delete-message" | "add-reaction" | "remove-reaction":
                return _of_message(do.name, message_id, second)
            case "mark-read" | "mark-delivered":
                return _mark(do.name, chat_id, message_id, second)
            case "create-group" | "update-profile" | "set-status":
                return self._of_oneself(do.name, other, word, third)
            case "change-password" | "delete-account":
                return _of_account(do.name, self.passwords[do.actor], third)
            case _:
                return _of_people(do.name, chat_id, other, third)

    def _of_oneself(self, name: str, other: str, word: str, slot: int) -> Json:
        match name:
            case "create-group":
                return {"name": word, "member_ids": list({other, self._id(slot)})}
            case "update-profile":
                name_or_none = word if slot % 3 else None
                return {"display_name": name_or_none, "avatar_url": AVATARS[slot % len(AVATARS)]}
            case _:
                return {"status": ("online", "away")[slot % 2]}

    # ----------------------------------------------------------------------- clients

    async def _act(self, act: Act) -> None:
        client = self.clients[act.client]
        if CLIENTS[act.client] in self.gone:
            return
        try:
            await self._acts(client, act)
        except (Gone, AssertionError):
            # Its account may be ending at this very moment.
            if not await self._is_ending(CLIENTS[act.client]):
                raise

    async def _acts(self, client: Reference, act: Act) -> None:
        match act.name:
            case "begin":
                await client.begin(act.process, act.how)
            case "cut" | "leave":
                await (client.cut() if act.name == "cut" else client.leave())
            case "take":
                client.take()
                if act.how and client.is_open:
                    await client.received()
            case "fetch":
                client.take()
                await client.fetch(act.process)
            case "check":
                await self.check(act.client, act.process)
            case "start" if client.is_open:
                client.take()
                await client.start_again()
            case "received" if client.is_open:
                client.take()
                await client.received()
            case _:
                await client.resume(act.process)

    async def _is_ending(self, actor: int) -> bool:
        await asyncio.sleep(ENDED_SECONDS)
        headers = bearer(self.sessions[actor])
        response = await self.world.clients[0].get("/v1/sessions", headers=headers)
        return response.status_code == 401

    # ---------------------------------------------------------------------- the law

    async def check(self, number: int, process: int) -> None:
        """Quiet or not: a receipt, somebody's commands may come between."""
        client = self.clients[number]
        self.lines.append(f"client {number} of {client.me} is looked at")
        if not client.is_open:
            await client.resume(process)
        for _ in range(ROUNDS):
            fresh = await self._caught_up(client, process)
            if client.reducer.wanted_chats or client.reducer.wanted_users:
                await client.fetch(process)
                continue
            if all(chat.as_of <= fresh["position"] for chat in client.reducer.chats.values()):
                mine = client.reducer.state() | {"position": fresh["position"]}
                assert not (wrong := list(differences(plain(mine), plain(fresh)))), wrong
                self.checks += 1
                await client.received()
                return
        raise AssertionError(f"{client.reducer.wanted_chats} stay wanted")

    async def _caught_up(self, client: Reference, process: int) -> Json:
        """A fresh state, once the client has all that the log has for it up to there."""
        client.take()
        head = await self._head()
        fresh = await client.look(process, "/v1/state", head)
        await self._head()
        after, up_to = client.began, fresh["position"]
        assert client.position <= up_to
        must = self.concerns.must(client.me, after=after, up_to=up_to)
        await client.until(max(must, default=0), up_to)
        self._check_positions(client, must, up_to)
        return fresh

    async def _head(self) -> int:
        async with self._reading:
            return await self.concerns.read(self.world.connection)

    def _check_positions(self, client: Reference, must: list[int], up_to: int) -> None:
        applied = client.applied
        assert applied == sorted(set(applied)), "a position twice, or out of order"
        lost = set(must) - set(applied)
        assert not lost, f"lost: {self._told(lost)}"
        foreign = set(applied) - self.concerns.may(client.me, after=client.began, up_to=up_to)
        assert not foreign, f"not the client's: {self._told(foreign)}"

    def _told(self, positions: set[int]) -> list[Any]:
        return [self.concerns.at(position) for position in sorted(positions)]

    async def end(self) -> None:
        for number, client in enumerate(self.clients):
            if CLIENTS[number] not in self.gone:
                await self.check(number, number % PROCESSES)
            else:
                client.take()
                self._check_of_gone(client)

    def _check_of_gone(self, client: Reference) -> None:
        """Whatever came before the session ended was theirs."""
        head = self.concerns.head
        must = self.concerns.must(client.me, after=client.began, up_to=client.position)
        self._check_positions(client, must, head)

    async def close(self) -> None:
        for client in self.clients:
            await client.close()


def _of_message(name: str, message_id: str | None, slot: int) -> Json | None:
    if message_id is None:
        return None
    body = {"message_id": message_id}
    match name:
        case "edit-message":
            return body | {"content": WORDS[slot % len(WORDS)] + " again"}
        case "delete-message":
            return body
        case _:
            return body | {"emoji": EMOJI[slot % len(EMOJI)]}


def _of_account(name: str, password: str, slot: int) -> Json:
    if name == "change-password":
        return {"current_password": password, "new_password": f"{PASSWORD} {slot}"}
    return {"password": password, "erase_messages": bool(slot % 2)}


def _mark(name: str, chat_id: str, message_id: str | None, slot: int) -> Json | None:
    if message_id is None or (name == "mark-read" and slot % 2):
        return {"chat_id": chat_id} if name == "mark-read" else None
    return {"chat_id": chat_id, "up_to_message_id": message_id}


def _of_people(name: str, chat_id: str, other: str, slot: int) -> Json:
    match name:
        case "add-members":
            return {"chat_id": chat_id, "user_ids": [other]}
        case "remove-member" | "transfer-ownership":
            return {"chat_id": chat_id, "user_id": other}
        case "change-role":
            return {"chat_id": chat_id, "user_id": other, "role": ROLES[slot % 2]}
        case "update-group":
            return {"chat_id": chat_id, "name": WORDS[slot % len(WORDS)]}
        case "leave-group" | "delete-group":
            return {"chat_id": chat_id}
        case _:
            return {"user_id": other}


def plain(state: Json) -> Json:
    """Without what has no position (presence), what nobody is promised (where to go on, the
    order of reactions, and what a deleted account's username reads)."""
    state = {name: value for name, value in state.items() if not name.endswith("cursor")}
    for contact in state["contacts"]:
        _make_plain(contact["user"])
    for chat in state["chats"]:
        if chat["peer"]:
            _make_plain(chat["peer"])
        if chat["last_message"]:
            chat["last_message"]["reactions"].sort(key=lambda reaction: str(reaction["emoji"]))
    return state


def _make_plain(user: Json) -> None:
    for name in ("status", "last_seen"):
        user.pop(name, None)
    if user["display_name"] == DELETED_USER:
        user.pop("username", None)


def differences(mine: Any, fresh: Any, path: str = "") -> Iterator[str]:
    match mine, fresh:
        case dict(), dict():
            for name in sorted(mine.keys() | fresh.keys()):
                yield from differences(mine.get(name), fresh.get(name), f"{path}.{name}")
        case list(), list() if len(mine) == len(fresh):
            for number, (one, other) in enumerate(zip(mine, fresh, strict=True)):
                yield from differences(one, other, f"{path}[{number}]")
        case _ if mine != fresh:
            yield f"{path}: the client has {mine}, fresh is {fresh}"


@asynccontextmanager
async def running(url: str, nats_url: str) -> AsyncIterator[World]:
    changed = {"rate_limits": False, "receipt_flush_ms": 50, "presence_grace_seconds": 0.1}
    async with (
        daemons.relaying(url, nats_url),
        daemons.projecting(url, nats_url),
        serving(url, nats_url, **changed) as one,
        serving(url, nats_url, **changed) as other,
        daemons.connected(url) as connection,
    ):
        yield World([one, other], connection)


async def holds(world: World, steps: list[Step]) -> int:
    """The number of times that a whole state was compared."""
    history = History(world, (await event_log.head(world.connection)).position)
    try:
        async with asyncio.timeout(HISTORY_SECONDS):
            await history.open()
            for step in steps:
                await history.do(step)
            await history.end()
    except BaseException as failed:
        failed.add_note("\n".join(history.lines))
        raise
    finally:
        await history.close()
    return history.checks


@pytest.mark.timeout(300 + 30 * EXAMPLES)
def test_a_state_and_the_events_after_it_are_the_fresh_state(
    database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that these histories go beyond them.
    monkeypatch.setattr(catch_up, "PAGE_EVENTS", 7)
    monkeypatch.setattr(gateway, "ROOMS_LOADED_AT_ONCE", 2)
    monkeypatch.setattr(gateway, "SENDERS_REMEMBERED", 2)
    monkeypatch.setattr(gateway, "FRAMES_A_TURN", 1)
    checks: list[int] = []
    with asyncio.Runner() as runner:
        world = running(database_url, nats_url)
        opened = runner.run(world.__aenter__())

        @settings(max_examples=EXAMPLES, phases=PHASES)
        @given(histories)
        def law(steps: list[Step]) -> None:
            checks.append(runner.run(holds(opened, steps)))

        try:
            law()
        finally:
            runner.run(world.__aexit__(None, None, None))
    assert sum(checks) >= EXAMPLES * (len(CLIENTS) - 2)
