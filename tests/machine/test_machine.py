"""Any history of commands: the API, its read models, their rebuilds and a plain model agree.

Five people send every command there is, in any order, to two API processes: one by one, in
batches, and several at once. Each answer must be the model's (status, code and body), and for
those sent at once some order of single commands must explain them all. What each of the five
then sees through the queries must be what the model shows.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, AsyncExitStack
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from infra.bus import Bus, stream_name
from infra.embedded.nats import Nats
from tests.api.served import PASSWORD
from tests.machine import served
from tests.machine.model import EMOJI, Json, Messenger
from tests.machine.orders import (
    Exchange,
    Unexplained,
    difference,
    explain,
    settle,
    settlings,
    step,
)
from tests.machine.served import Heard, Sent, World

NAMES = ("ann", "bob", "cat", "dan", "eve")
GROUPS = 3
MESSAGES = 8
RECENT = 8
SLOTS = 11
KEYS = ("key 1", "key 2")
STEPS = 40
# So many accounts stay.
FEWEST = 3
# Each is some 3 s of work.
EXAMPLES = max(6, settings().max_examples // 5)
# A race told again may end otherwise, and to shrink what takes seconds takes minutes: a failure
# brings along all that was sent instead.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)

T = TypeVar("T")


def made_id(kind: int, number: int) -> str:
    return f"0190{kind:04x}-0000-7000-8000-{number:012x}"


PEOPLE = [made_id(1, number) for number in range(len(NAMES))]
NOBODY = made_id(1, 99)
CHATS = [made_id(2, number) for number in range(GROUPS)]
OWN_MESSAGES = [made_id(3, number) for number in range(MESSAGES)]

WORDS = ("one", "two", "three")
SLUGS = ("alpha", "Alpha", "beta", "gamma", "direct-x")
BOLD = {"formatting": {"bold": [[0, 2]], "italic": []}}
BEYOND = {"formatting": {"bold": [[0, 99]]}}

words = st.sampled_from(WORDS)
texts = st.sampled_from([*WORDS, *WORDS, *WORDS, ""])
# Of none that is there: uploads are no commands.
attachments = st.sampled_from([[], [], [], [], [made_id(4, 1)], [made_id(4, 1), made_id(4, 1)]])
slugs = st.sampled_from(SLUGS)
avatars = st.sampled_from([None, "https://example.org/a.png"])
metadata = st.sampled_from([BOLD, BOLD, {}, BEYOND])
processes = st.integers(0, served.PROCESSES - 1)
passwords = st.sampled_from([PASSWORD, PASSWORD, PASSWORD, "another password"])
emoji = st.sampled_from([*EMOJI, "no emoji"])


class Bodies:
    """Strategies for the body of every command, about what there is now.

    What a race leaves may differ when a history is told again, so what is drawn is a slot;
    which chat or message stands there is looked up.
    """

    def __init__(self, model: Messenger) -> None:
        chats = list(dict.fromkeys([*CHATS, *model.chats]))
        known = [message_id for message_id in model.messages if is_known(message_id)]
        messages = [OWN_MESSAGES[-1], *known[-RECENT:]]
        self.people = st.sampled_from([*PEOPLE, NOBODY])
        self.several = st.lists(st.sampled_from(PEOPLE), min_size=1, max_size=4)
        self.chats = st.integers(0, SLOTS).map(lambda slot: chats[slot % len(chats)])
        self.messages = st.integers(0, SLOTS).map(lambda slot: messages[slot % len(messages)])

    def narrowed(self, data: st.DataObject, user: str | None = None) -> "Bodies":
        """All about one chat, two people and two messages, so that commands collide."""
        pair = [user or data.draw(st.sampled_from(PEOPLE)), data.draw(st.sampled_from(PEOPLE))]
        self.people = st.sampled_from(pair)
        self.several = st.just(pair)
        chat_id, messages = data.draw(self.chats), [data.draw(self.messages) for _ in range(2)]
        self.chats = st.just(chat_id)
        self.messages = st.booleans().map(lambda is_first: messages[is_first])
        return self

    def of(self, name: str) -> st.SearchStrategy[Json]:
        body: st.SearchStrategy[Json] = getattr(self, name.replace("-", "_"))()
        return body

    def register_user(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries(
            {"username": st.sampled_from([*NAMES, "fay"]), "password": passwords},
            optional={"user_id": self.people, "display_name": words},
        )

    def update_profile(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries(
            {}, optional={"display_name": st.none() | words, "avatar_url": avatars}
        )

    def change_password(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries({"current_password": passwords, "new_password": passwords})

    def set_status(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries({"status": st.sampled_from(["online", "away", "offline"])})

    def delete_account(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries(
            {"password": passwords}, optional={"erase_messages": st.booleans()}
        )

    def _person(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries({"user_id": self.people})

    request_contact = accept_contact = remove_contact = _person
    block_contact = unblock_contact = open_direct_chat = _person

    def create_group(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries(
            {"name": words, "member_ids": self.several},
            optional={"slug": slugs, "chat_id": self.chats, "avatar_url": avatars},
        )

    def update_group(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries(
            {"chat_id": self.chats}, optional={"name": words, "slug": slugs, "avatar_url": avatars}
        )

    def _chat(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries({"chat_id": self.chats})

    delete_group = leave_group = _chat

    def add_members(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries({"chat_id": self.chats, "user_ids": self.several})

    def _member(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries({"chat_id": self.chats, "user_id": self.people})

    remove_member = transfer_ownership = _member

    def change_role(self) -> st.SearchStrategy[Json]:
        role = st.sampled_from(["admin", "member"])
        return st.fixed_dictionaries({"chat_id": self.chats, "user_id": self.people, "role": role})

    def send_message(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries(
            {"chat_id": self.chats, "content": texts},
            optional={
                "message_id": st.sampled_from(OWN_MESSAGES[:-1]),
                "attachment_ids": attachments,
                "reply_to_id": self.messages,
                "metadata": metadata,
            },
        )

    def edit_message(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries(
            {"message_id": self.messages, "content": texts}, optional={"metadata": metadata}
        )

    def delete_message(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries({"message_id": self.messages})

    def _reaction(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries({"message_id": self.messages, "emoji": emoji})

    add_reaction = remove_reaction = _reaction

    def mark_delivered(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries({"chat_id": self.chats, "up_to_message_id": self.messages})

    def mark_read(self) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries(
            {"chat_id": self.chats}, optional={"up_to_message_id": self.messages}
        )


# What is named more often comes more often.
COMMANDS = (
    *["send-message"] * 4,
    *["add-reaction", "mark-read", "edit-message", "delete-message", "add-members"] * 2,
    *["request-contact", "accept-contact", "open-direct-chat", "create-group"] * 2,
    "remove-reaction",
    "mark-delivered",
    "register-user",
    "update-profile",
    "change-password",
    "set-status",
    "remove-contact",
    "block-contact",
    "unblock-contact",
    "update-group",
    "delete-group",
    "remove-member",
    *["leave-group"] * 2,
    "change-role",
    "transfer-ownership",
)
WITHOUT_ACTOR = ("register-user",)


class Histories(RuleBasedStateMachine):
    """`fresh_database` and `nats` are set by the test."""

    fresh_database: Callable[[], AbstractContextManager[str]]
    nats: Nats

    @initialize()
    def begin(self) -> None:
        """The first three are contacts, and in a group with the fourth, who is an admin."""
        self.model = Messenger()
        self.head = 0
        self.history: list[str] = []
        self.names = dict(zip(PEOPLE, NAMES, strict=True)) | {NOBODY: "nobody"}
        self.runner = asyncio.Runner()
        self.await_(self._open())

    def await_(self, work: Coroutine[Any, Any, T]) -> T:
        """A failure brings along what was sent: told again, a race may end otherwise."""
        self.is_whole = False
        try:
            result = self.runner.run(work)
        except AssertionError as failed:
            failed.add_note("\n".join(self.history))
            raise
        self.is_whole = True
        return result

    async def _open(self) -> None:
        self.stack = AsyncExitStack()
        url = self.stack.enter_context(self.fresh_database())
        async with Bus(self.nats.url, name="test") as bus:
            await bus.delete_stream(stream_name(1))
        self.world: World = await self.stack.enter_async_context(served.running(url, self.nats.url))
        for user_id, name in zip(PEOPLE, NAMES, strict=True):
            body = {"username": name, "password": PASSWORD, "user_id": user_id}
            await self._one(Sent(None, "register-user", body, None, 0))
            await self.world.log_in(user_id, name)
        ann, bob, cat, dan, _ = PEOPLE
        group = {"name": "one", "member_ids": [bob, cat, dan], "chat_id": CHATS[0]}
        await self._one(Sent(ann, "create-group", group, None, 1))
        # The one whose turn it is, if the owner leaves, though last in line.
        admin = {"chat_id": CHATS[0], "user_id": dan, "role": "admin"}
        await self._one(Sent(ann, "change-role", admin, None, 0))
        for one, other in ((ann, bob), (ann, cat), (bob, cat)):
            await self._one(Sent(one, "request-contact", {"user_id": other}, None, 0))
            await self._one(Sent(other, "request-contact", {"user_id": one}, None, 1))
        await self._one(Sent(ann, "open-direct-chat", {"user_id": bob}, None, 0))

    # ---------------------------------------------------------------------------- commands

    @rule(data=st.data())
    def a_command(self, data: st.DataObject) -> None:
        self.await_(self._one(self._draw(data)))

    def _draw(
        self, data: st.DataObject, actor: str | None = None, bodies: Bodies | None = None
    ) -> Sent:
        name = data.draw(st.sampled_from(COMMANDS))
        actor = actor or data.draw(st.sampled_from(PEOPLE))
        body = data.draw((bodies or Bodies(self.model)).of(name))
        key = data.draw(st.sampled_from([None] * 6 + [*KEYS]))
        by = None if name in WITHOUT_ACTOR else actor
        return Sent(by, name, body, key, data.draw(processes))

    async def _one(self, sent: Sent) -> None:
        self._take(sent, await self.world.send(sent))

    def _take(self, sent: Sent, heard: Heard) -> None:
        """What was sent alone is answered at the head."""
        self._note(sent, heard)
        outcome = step(self.model, sent, heard)
        wrong = difference(outcome, heard, self.head)
        if wrong is None and heard.position and not outcome.is_changed and not outcome.position:
            wrong = None if heard.position == self.head else f"the log ends at {self.head}"
        assert wrong is None, f"{self._told(sent, heard)}: {wrong}"
        settle(self.model, settlings(sent, outcome))
        self.head = max(self.head, heard.position or 0)

    @rule(data=st.data(), actor=st.sampled_from(PEOPLE), count=st.integers(1, 4))
    def a_batch(self, data: st.DataObject, actor: str, count: int) -> None:
        some = [self._draw(data, actor) for _ in range(count)]
        some = [sent._replace(process=some[0].process, actor=actor) for sent in some]
        self.await_(self._batch(some))

    async def _batch(self, some: list[Sent]) -> None:
        for sent, heard in zip(some, await self.world.send_batch(some), strict=True):
            self._take(sent, heard)

    @rule(data=st.data(), count=st.integers(2, 6))
    def several_at_once(self, data: st.DataObject, count: int) -> None:
        self.await_(self._at_once([self._draw(data) for _ in range(count)]))

    @rule(data=st.data(), count=st.integers(2, 6))
    def a_rush(self, data: st.DataObject, count: int) -> None:
        """Everybody wants something of the same chat or person."""
        bodies = Bodies(self.model).narrowed(data)
        self.await_(self._at_once([self._draw(data, bodies=bodies) for _ in range(count)]))

    @rule(data=st.data(), actors=st.lists(st.sampled_from(PEOPLE), min_size=2, max_size=5))
    def the_same_at_once(self, data: st.DataObject, actors: list[str]) -> None:
        """Word for word, some of them twice."""
        first = self._draw(data)
        if first.name == "delete-account":
            actors = list(dict.fromkeys(actors))
        some = [
            first._replace(actor=first.actor and actor, process=number % served.PROCESSES)
            for number, actor in enumerate(actors)
        ]
        self.await_(self._at_once(some))

    async def _at_once(self, some: list[Sent]) -> None:
        exchanges: list[Exchange] = list(zip(some, await self.world.send_all(some), strict=True))
        self._write("at once:")
        for sent, heard in exchanges:
            self._note(sent, heard)
        try:
            settled = await self.world.settled(self.head)
            self.model, order = explain(self.model, exchanges, self.head, settled)
        except Unexplained as unexplained:
            told = "\n".join(self._told(*exchange) for exchange in exchanges)
            raise Unexplained(f"no order of these explains their answers:\n{told}") from unexplained
        self._write(f"in the order {order}")
        self.head = max([self.head, *(heard.position or 0 for _, heard in exchanges)])

    @rule(data=st.data(), user=st.sampled_from(PEOPLE), count=st.integers(0, 4))
    def an_account_ends(self, data: st.DataObject, user: str, count: int) -> None:
        """While others do something with the same person or chat."""
        bodies = Bodies(self.model).narrowed(data, user)
        body = data.draw(bodies.delete_account())
        some = [Sent(user, "delete-account", body, None, data.draw(processes))]
        others = [other for other in PEOPLE if other != user]
        for _ in range(count):
            some.append(self._draw(data, data.draw(st.sampled_from(others)), bodies))
        if len(self._here()) > FEWEST:
            self.await_(self._at_once(some))

    def _here(self) -> list[str]:
        return [user for user in PEOPLE if not self.model.users[user]["is_deleted"]]

    # ------------------------------------------------------------------------------- views

    @rule(process=processes)
    def everybody_looks(self, process: int) -> None:
        self.await_(self._look(process))

    async def _look(self, process: int) -> None:
        here = self._here()
        await asyncio.gather(*(self._messages(user, process) for user in here))
        for look in (self._account, self._chats, self._unread, self._state, self._details):
            await asyncio.gather(*(look(user, process) for user in here))
        assert await self.world.unread_rows() == {
            (user, message["id"])
            for message in self.model.messages.values()
            for user in message["unread"]
        }

    async def _sees(self, user: str, path: str, expected: Any, process: int) -> None:
        found = await self.world.see(user, path, self.head, process)
        self._same(user, path, found, expected)

    def _same(self, user: str, path: str, found: Any, expected: Any) -> None:
        assert found == expected, self._named(
            f"{user} sees at {path}:\n{found}\nbut the model:\n{expected}"
        )

    async def _messages(self, user: str, process: int) -> None:
        """First of all: from these the model learns the ids of system messages."""
        for chat_id in self.model.chats_of(user):
            path = f"/v1/chats/{chat_id}/messages?after=0&limit=100"
            page = await self.world.see(user, path, self.head, process)
            for message in page["items"]:
                self.model.learn_id(chat_id, message["seq"], message["id"])
            self._check_positions(page["items"])
            expected = self.model.messages_of(user, chat_id)
            found = [without_position(message) for message in page["items"]]
            self._same(user, path, by_emoji(found[:100]), by_emoji(expected[:100]))

    def _check_positions(self, messages: list[Json]) -> None:
        positions = [message["position"] for message in messages]
        assert positions == sorted(set(positions))
        for message in messages:
            known = self.model.messages[message["id"]].get("position")
            assert known in (None, message["position"])

    async def _account(self, user: str, process: int) -> None:
        await self._sees(user, "/v1/users/me", self.model.user_view(user, user), process)
        for other in PEOPLE:
            expected = self.model.user_view(user, other)
            await self._sees(user, f"/v1/users/{other}", expected, process)
        found = await self.world.see(user, "/v1/contacts", self.head, process)
        del found["next_cursor"]
        self._same(user, "/v1/contacts", ordered(found), ordered(self.model.contacts_view(user)))

    async def _chats(self, user: str, process: int) -> None:
        page = await self.world.see(user, "/v1/chats?limit=100", self.head, process)
        found = {chat["id"]: plain_chat(chat) for chat in page["items"]}
        expected = {
            chat_id: plain_chat(self.model.chat_view(user, chat_id))
            for chat_id in self.model.chats_of(user)
        }
        self._same(user, "/v1/chats", found, expected)

    async def _unread(self, user: str, process: int) -> None:
        found = await self.world.see(user, "/v1/unread", self.head, process)
        expected = self.model.unread_view(user)
        self._same(user, "/v1/unread", ordered(found), ordered(expected))

    async def _state(self, user: str, process: int) -> None:
        """The same as the queries one by one, at one position."""
        found = await self.world.see(user, "/v1/state", self.head, process)
        assert found["position"] == self.head
        expected = self.model.state_view(user)
        for one in (found, expected):
            one["chats"] = [plain_chat(chat) for chat in one["chats"]]
        shown = {name: found[name] for name in expected}
        self._same(user, "/v1/state", ordered(shown), ordered(expected))

    async def _details(self, user: str, process: int) -> None:
        mine = self.model.chats_of(user)
        for chat_id in self.model.chats:
            path = f"/v1/chats/{chat_id}/participants"
            found = await self.world.see(user, path, self.head, process)
            view = self.model.participants_view
            expected = view(user, chat_id) if chat_id in mine else "not-found"
            self._same(user, path, ordered(found), ordered(expected))
        for message_id, message in list(self.model.messages.items())[-RECENT:]:
            if message["chat_id"] in mine:
                await self._message(user, message_id, process)
            elif is_known(message_id):
                await self._sees(user, f"/v1/messages/{message_id}", "not-found", process)

    async def _message(self, user: str, message_id: str, process: int) -> None:
        is_own = self.model.messages[message_id]["sender"] == user
        path = f"/v1/messages/{message_id}/delivery"
        found = await self.world.see(user, path, self.head, process)
        expected: Any = self.model.delivery_view(message_id) if is_own else "forbidden"
        self._same(user, path, ordered(found), ordered(expected))
        path = f"/v1/messages/{message_id}/reactions"
        found = await self.world.see(user, path, self.head, process)
        expected = {"items": self.model.reactions_view(message_id)}
        self._same(user, path, ordered(found), ordered(expected))

    # ------------------------------------------------------------------------------ the end

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            if self.is_whole:
                self.await_(self._rest_and_check())
        finally:
            self.runner.run(self.stack.aclose())
            self.runner.close()

    async def _rest_and_check(self) -> None:
        await self._look(0)
        await self.world.check_rebuilt(self.head)

    # ----------------------------------------------------------------------------- telling

    def _note(self, sent: Sent, heard: Heard) -> None:
        self._write(f"{len(self.history)}. {self._told(sent, heard)}")

    def _write(self, line: str) -> None:
        self.history.append(line)

    def _told(self, sent: Sent, heard: Heard) -> str:
        key = f" ({sent.key})" if sent.key else ""
        answer = heard.body if heard.status == 200 else heard.code
        again = " again" if heard.is_replayed else ""
        return self._named(
            f"{sent.actor or 'somebody'} {sent.name}{key} {sent.data} at {sent.process}: "
            f"{heard.status}{again} {answer} {heard.position or ''}"
        )

    def _named(self, text: str) -> str:
        """Ids as names that people can tell apart."""
        for number, chat_id in enumerate(dict.fromkeys([*CHATS, *self.model.chats])):
            self.names.setdefault(chat_id, f"chat{number}")
        for message_id in [*OWN_MESSAGES, *self.model.messages]:
            self.names.setdefault(message_id, f"message{len(self.names)}")
        for one, name in self.names.items():
            text = text.replace(one, name)
        return text


def is_known(message_id: str) -> bool:
    """Nobody has seen the system message yet."""
    return not message_id.startswith("told ")


def without_position(message: Json) -> Json:
    return {name: value for name, value in message.items() if name != "position"}


def by_emoji(messages: list[Json]) -> list[Json]:
    def key(reaction: Json) -> str:
        emoji: str = reaction["emoji"]
        return emoji

    return [message | {"reactions": sorted(message["reactions"], key=key)} for message in messages]


def plain_chat(chat: Json) -> Json:
    """Chats are listed by times, which the model does not know."""
    last = chat["last_message"]
    return chat | {"last_message": by_emoji([without_position(last)])[0] if last else None}


def ordered(answer: Any) -> Any:
    """An order by ids or names is nobody's business here."""
    if isinstance(answer, dict):
        return {name: ordered(answer[name]) for name in sorted(answer)}
    return sorted(map(ordered, answer), key=repr) if isinstance(answer, list) else answer


@pytest.mark.timeout(300 + 30 * EXAMPLES)
def test_api_read_models_rebuilds_and_a_plain_messenger_agree(
    fresh_database: Callable[[], AbstractContextManager[str]],
    nats_server: Nats,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Histories, "fresh_database", staticmethod(fresh_database), raising=False)
    monkeypatch.setattr(Histories, "nats", nats_server, raising=False)
    run_state_machine_as_test(
        Histories,
        settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS, phases=PHASES),
    )
