"""Any history of commands, daemons, faults and replays: log, copy and read models agree.

Commands of several people go through two executors, as two processes would have them, and are
interleaved with everything that may happen to what is derived from the log: batches of any
size by daemons that fence each other, replays swapped or broken off, the copy in JetStream
dropped or purged. At the end of each history all is brought to rest and compared.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from nats.js.errors import NotFoundError

from commands import BY_TYPE
from commands.accept_contact import AcceptContact
from commands.add_members import AddMembers
from commands.add_reaction import AddReaction
from commands.block_contact import BlockContact
from commands.change_password import ChangePassword
from commands.change_role import ChangeRole
from commands.command import Command
from commands.create_group import CreateGroup
from commands.delete_account import DeleteAccount
from commands.delete_group import DeleteGroup
from commands.delete_message import DeleteMessage
from commands.edit_message import EditMessage
from commands.formatting import Metadata, Styles
from commands.leave_group import LeaveGroup
from commands.mark_delivered import MarkDelivered
from commands.mark_read import MarkRead
from commands.open_direct_chat import OpenDirectChat
from commands.record_deliveries import RecordDeliveries
from commands.register_user import RegisterUser
from commands.remove_attachment import RemoveAttachment
from commands.remove_contact import RemoveContact
from commands.remove_member import RemoveMember
from commands.remove_reaction import RemoveReaction
from commands.request_contact import RequestContact
from commands.send_message import SendMessage
from commands.set_status import SetStatus
from commands.settle_deletion import SettleDeletion
from commands.settle_presence import SettlePresence
from commands.transfer_ownership import TransferOwnership
from commands.unblock_contact import UnblockContact
from commands.update_group import UpdateGroup
from commands.update_profile import UpdateProfile
from commands.upload_attachment import StoredImage, UploadAttachment
from domain.attachment import EXTENSIONS
from domain.ids import UserId, direct_chat_id
from domain.refusals import Refusal
from infra import rebuild, replay
from infra.bus import Bus, stream_name
from infra.embedded.nats import Nats
from infra.executor import Done
from infra.projector import Fenced, Reader, Writer
from projections import BY_NAME, NAMES, PROJECTIONS
from tests.commands.history import attachment_id, chat_id, message_id, user_id
from tests.domain.test_invariants import gateways, marked
from tests.infra import daemons, machines
from tests.infra.machines import PASSWORD, Machine

PEOPLE = 5
CHATS = 2
MESSAGES = 10
ATTACHMENTS = 12
STEPS = 25
# Small, so that a rebuild of a short history has many places to be broken off at.
REBUILD_BATCH_EVENTS = 5
# Each is some 2 s of work: a third of what cheaper properties get.
EXAMPLES = max(5, settings().max_examples // 3)

T = TypeVar("T")

# The last two may delete their accounts: there shall be somebody left to do something.
MORTALS = [user_id(PEOPLE - 1), user_id(PEOPLE)]
DIRECT_CHATS = [direct_chat_id(user_id(1), user_id(other)) for other in (2, PEOPLE)]

people = st.integers(1, PEOPLE).map(user_id)
chats = st.sampled_from([chat_id(1), *DIRECT_CHATS, chat_id(2), chat_id(1)])
groups = st.integers(1, CHATS).map(chat_id)
messages = st.integers(1, MESSAGES).map(message_id)
words = st.sampled_from(["one", "two", "three", "four"])
members = st.lists(people, min_size=1, max_size=PEOPLE)
bold = st.just(Metadata(formatting=Styles(bold=[[0, 2]])))
emoji = st.sampled_from(["👍", ":tada:"])
marks = st.dictionaries(people, st.integers(1, 80), min_size=1, max_size=PEOPLE).map(marked)

attachments = st.integers(1, ATTACHMENTS).map(attachment_id)
images = st.builds(
    StoredImage,
    attachment_id=attachments,
    file_name=words,
    file_type=st.sampled_from(sorted(EXTENSIONS)),
    file_size=st.integers(1, 10_485_760),
    width=st.integers(1, 8_000),
    height=st.integers(1, 8_000),
    store=st.just("https://objects.example.org/messenger"),
)
uploads = st.builds(UploadAttachment, chat_id=chats, message_id=messages, image=images)
sends = st.builds(
    SendMessage,
    chat_id=chats,
    content=words,
    message_id=messages,
    reply_to_id=st.none() | st.none() | messages,
    metadata=st.none() | bold,
    attachment_ids=st.none() | st.none() | st.lists(attachments, max_size=3),
)
unnamed = st.builds(SendMessage, chat_id=chats, content=words)
edits = st.builds(EditMessage, message_id=messages, content=words, metadata=st.none() | bold)
BY_COMMAND: dict[type[Command], st.SearchStrategy[Command]] = {
    SendMessage: sends,
    EditMessage: edits,
    DeleteMessage: st.builds(DeleteMessage, message_id=messages),
    UploadAttachment: uploads,
    RemoveAttachment: st.builds(RemoveAttachment, attachment_id=attachments),
    AddReaction: st.builds(AddReaction, message_id=messages, emoji=emoji),
    RemoveReaction: st.builds(RemoveReaction, message_id=messages, emoji=emoji),
    MarkRead: st.builds(MarkRead, chat_id=chats, up_to_message_id=st.none() | messages),
    MarkDelivered: st.builds(MarkDelivered, chat_id=chats, up_to_message_id=messages),
    RecordDeliveries: st.builds(
        RecordDeliveries,
        gateway_id=gateways,
        marks=st.dictionaries(chats, marks, min_size=1, max_size=3),
    ),
    SettlePresence: st.builds(SettlePresence, is_connected=st.booleans()),
    CreateGroup: st.builds(CreateGroup, name=words, member_ids=members, slug=words, chat_id=groups),
    UpdateGroup: st.builds(UpdateGroup, chat_id=chats, name=words, slug=words),
    DeleteGroup: st.builds(DeleteGroup, chat_id=st.just(chat_id(2))),
    AddMembers: st.builds(AddMembers, chat_id=groups, user_ids=members),
    RemoveMember: st.builds(RemoveMember, chat_id=groups, user_id=people),
    LeaveGroup: st.builds(LeaveGroup, chat_id=chats),
    ChangeRole: st.builds(
        ChangeRole, chat_id=groups, user_id=people, role=st.sampled_from(["admin", "member"])
    ),
    TransferOwnership: st.builds(TransferOwnership, chat_id=groups, user_id=people),
    UpdateProfile: st.builds(UpdateProfile, display_name=st.none() | words),
    ChangePassword: st.just(ChangePassword(current_password=PASSWORD, new_password=PASSWORD)),
    SetStatus: st.builds(SetStatus, status=st.sampled_from(["online", "away", "offline"])),
    RequestContact: st.builds(RequestContact, user_id=people),
    AcceptContact: st.builds(AcceptContact, user_id=people),
    RemoveContact: st.builds(RemoveContact, user_id=people),
    BlockContact: st.builds(BlockContact, user_id=people),
    UnblockContact: st.builds(UnblockContact, user_id=people),
    OpenDirectChat: st.builds(OpenDirectChat, user_id=people),
    SettleDeletion: st.just(
        SettleDeletion(
            chat_ids=[chat_id(number) for number in range(1, CHATS + 1)],
            contact_ids=[user_id(number) for number in range(1, PEOPLE - 1)],
        )
    ),
}
BEGUN_OR_ENDED = {RegisterUser, DeleteAccount}  # by rules of their own
# Sent more often than the rest, as in life; without them little else has something to do.
commands = st.one_of([*BY_COMMAND.values(), sends, sends, sends, edits])


class Sent(NamedTuple):
    """A command with who sends it and the process that takes it."""

    command: Command
    by: Any
    machine: int


sent = st.builds(Sent, commands, people, st.integers(0, 1))


class Histories(RuleBasedStateMachine):
    """`fresh_database` and `nats` are set by the test."""

    fresh_database: Callable[[], AbstractContextManager[str]]
    nats: Nats

    @initialize(extra=st.integers(0, 3))
    def begin(self, extra: int) -> None:
        """Everybody is registered and in the first chat; two have a direct chat with its owner."""
        self.runner = asyncio.Runner()
        self.acknowledged: list[Done] = []
        self.stale: dict[str, int] = {}
        self.await_(self._open())
        owner = user_id(1)
        self.await_(self._people())
        first = CreateGroup(
            name="one", member_ids=[user_id(n) for n in range(2, PEOPLE + 1)], chat_id=chat_id(1)
        )
        self.await_(self._send(Sent(first, owner, 0)))
        for other in (user_id(2), user_id(PEOPLE)):
            self.await_(self._direct(owner, other))
        for _ in range(extra):
            self.await_(self._send(Sent(SendMessage(chat_id=chat_id(1), content="x"), owner, 1)))

    def await_(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def _open(self) -> None:
        self.stack = AsyncExitStack()
        self.url = self.stack.enter_context(self.fresh_database())
        enter = self.stack.enter_async_context
        self.machines = [await enter(machines.running(self.url)) for _ in range(2)]
        self.keys = await enter(daemons.keyring(self.url))
        self.reading = await enter(daemons.connected(self.url))
        self.writing = [await enter(daemons.connected(self.url)) for _ in range(2)]
        self.bus = await enter(Bus(self.nats.url, name="test"))
        await self.bus.delete_stream(stream_name(1))

    async def _people(self) -> None:
        for number in range(1, PEOPLE + 1):
            register = RegisterUser(
                username=f"user_{number}", password=PASSWORD, user_id=user_id(number)
            )
            await self._send(Sent(register, None, number % 2))

    async def _direct(self, owner: UserId, other: UserId) -> None:
        await self._send(Sent(RequestContact(user_id=owner), other, 0))
        await self._send(Sent(RequestContact(user_id=other), owner, 1))
        await self._send(Sent(OpenDirectChat(user_id=other), owner, 1))

    async def _send(self, one: Sent) -> None:
        machine: Machine = self.machines[one.machine]
        try:
            done = await machine.run(one.command, one.by)
        except Refusal:
            return
        self.acknowledged.append(done)

    # ---------------------------------------------------------------------------- commands

    @rule(one=sent)
    def a_command(self, one: Sent) -> None:
        self.await_(self._send(one))

    @rule(who=st.sampled_from(MORTALS), erase=st.booleans(), machine=st.integers(0, 1))
    def an_account_ends(self, who: UserId, erase: bool, machine: int) -> None:
        """Settled sooner or later, by a command among the others, or never."""
        end = DeleteAccount(password=PASSWORD, erase_messages=erase)
        self.await_(self._send(Sent(end, who, machine)))

    @rule(some=st.lists(sent, min_size=2, max_size=12))
    def several_commands_at_once(self, some: list[Sent]) -> None:
        self.await_(self._all(some))

    async def _all(self, some: list[Sent]) -> None:
        await asyncio.gather(*(self._send(one) for one in some))

    @rule(
        some=st.lists(images, min_size=1, max_size=3, unique_by=lambda one: one.attachment_id),
        chat=chats,
        message=messages,
        by=people,
        machine=st.integers(0, 1),
    )
    def images_are_sent(
        self, some: list[StoredImage], chat: Any, message: Any, by: Any, machine: int
    ) -> None:
        """Those of them whose ids are free and which come in time; else the message is refused."""
        for image in some:
            upload = UploadAttachment(chat_id=chat, message_id=message, image=image)
            self.await_(self._send(Sent(upload, by, machine)))
        ids = [image.attachment_id for image in some]
        send = SendMessage(chat_id=chat, content="", message_id=message, attachment_ids=ids)
        self.await_(self._send(Sent(send, by, 1 - machine)))

    @rule(some=st.lists(st.tuples(unnamed, people), min_size=5, max_size=20))
    def a_busy_chat(self, some: list[tuple[SendMessage, Any]]) -> None:
        self.await_(self._all([Sent(send, by, n % 2) for n, (send, by) in enumerate(some)]))

    # -------------------------------------------------------------------------- projections

    @rule(
        name=st.sampled_from(NAMES),
        daemon=st.integers(0, 1),
        sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    )
    def some_batches(self, name: str, daemon: int, sizes: list[int]) -> None:
        """By one of two daemons of the same name."""
        self.await_(self._batches(name, daemon, iter(sizes)))

    async def _batches(self, name: str, daemon: int, sizes: Iterator[int]) -> None:
        reader = Reader(BY_NAME[name], self.reading, self.keys)
        writer = Writer(BY_NAME[name], self.writing[daemon])
        position = await writer.checkpoint()
        for size in sizes:
            up_to = min(position + size, (await reader.head()).position)
            if up_to > position:
                events = await reader.read(after=position, up_to=up_to)
                self.stale[name] = position
                position = await writer.apply(events, after=position)

    @precondition(lambda self: self.stale)
    @rule(data=st.data(), daemon=st.integers(0, 1), size=st.integers(1, 30))
    def a_batch_again(self, data: st.DataObject, daemon: int, size: int) -> None:
        """By a daemon that does not know yet that it was applied."""
        name = data.draw(st.sampled_from(sorted(self.stale)))
        self.await_(self._again(name, daemon, size))

    async def _again(self, name: str, daemon: int, size: int) -> None:
        reader = Reader(BY_NAME[name], self.reading, self.keys)
        writer = Writer(BY_NAME[name], self.writing[daemon])
        after = self.stale[name]
        if await writer.checkpoint() == after:
            return
        up_to = min(after + size, (await reader.head()).position)
        events = await reader.read(after=after, up_to=up_to)
        with pytest.raises(Fenced):
            await writer.apply(events, after=after)

    @rule(milliseconds=st.integers(1, 60), twice=st.sets(st.sampled_from(NAMES), max_size=2))
    def daemons_run_for_a_while(self, milliseconds: int, twice: set[str]) -> None:
        """All projectors, some of them twice, and then they are gone."""
        projections = [*PROJECTIONS, *(BY_NAME[name] for name in sorted(twice))]
        self.await_(self._while(milliseconds, projections))

    async def _while(self, milliseconds: int, projections: Any) -> None:
        async with daemons.projecting(self.url, self.nats.url, projections):
            await asyncio.sleep(milliseconds / 1000)

    # ------------------------------------------------------------------------------ replays

    @rule(name=st.sampled_from(NAMES))
    def a_replay(self, name: str) -> None:
        self.await_(self._replay(name, batches=1_000_000))

    @rule(name=st.sampled_from(NAMES), batches=st.integers(1, 8))
    def a_replay_broken_off(self, name: str, batches: int) -> None:
        self.await_(self._replay(name, batches))

    async def _replay(self, name: str, batches: int) -> None:
        class BrokenOff(Exception):
            pass

        def progress(*_: int) -> None:
            nonlocal batches
            batches -= 1
            if batches == 0:
                raise BrokenOff

        with suppress(BrokenOff):
            await replay.replay(BY_NAME[name], url=self.url, keyring=self.keys, progress=progress)

    # --------------------------------------------------------------------------------- copy

    @rule(milliseconds=st.integers(1, 60))
    def the_relay_runs_for_a_while(self, milliseconds: int) -> None:
        self.await_(self._relay_while(milliseconds))

    async def _relay_while(self, milliseconds: int) -> None:
        async with daemons.relaying(self.url, self.nats.url):
            await asyncio.sleep(milliseconds / 1000)

    @rule(milliseconds=st.integers(1, 60), some=st.lists(sent, min_size=1, max_size=8))
    def all_daemons_while_commands_come(self, milliseconds: int, some: list[Sent]) -> None:
        self.await_(self._live(milliseconds, some))

    async def _live(self, milliseconds: int, some: list[Sent]) -> None:
        async with (
            daemons.relaying(self.url, self.nats.url),
            daemons.projecting(self.url, self.nats.url),
        ):
            for one in some:
                await self._send(one)
            await asyncio.sleep(milliseconds / 1000)

    @rule()
    def the_copy_is_dropped(self) -> None:
        self.await_(self.bus.delete_stream(stream_name(1)))

    @rule()
    def the_copy_is_purged(self) -> None:
        self.await_(self._purge())

    async def _purge(self) -> None:
        # A relay that was stopped in mid-work may have asked for its deletion just before.
        with suppress(NotFoundError):
            await self.bus.jetstream.purge_stream(stream_name(1))

    # ------------------------------------------------------------------------------ the end

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            self.await_(self._rest_and_check())
        finally:
            self.await_(self.stack.aclose())
            self.runner.close()

    async def _rest_and_check(self) -> None:
        async with (
            daemons.relaying(self.url, self.nats.url),
            daemons.projecting(self.url, self.nats.url),
        ):
            await daemons.projected(self.url)
            await daemons.copied(self.url, self.nats.url)
        agreed = await daemons.check(self.url, self.nats.url)
        assert agreed.head == max(done.position for done in self.acknowledged)


@pytest.mark.timeout(300 + 10 * EXAMPLES)
def test_log_copy_and_read_models_agree_after_any_history(
    fresh_database: Callable[[], AbstractContextManager[str]],
    nats_server: Nats,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rebuild, "MAX_BATCH_EVENTS", REBUILD_BATCH_EVENTS)
    monkeypatch.setattr(Histories, "fresh_database", staticmethod(fresh_database), raising=False)
    monkeypatch.setattr(Histories, "nats", nats_server, raising=False)
    run_state_machine_as_test(
        Histories, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS)
    )


def test_every_command_takes_part() -> None:
    assert set(BY_COMMAND) | BEGUN_OR_ENDED == set(BY_TYPE)
