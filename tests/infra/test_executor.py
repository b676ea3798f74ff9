"""Commands on real PostgreSQL: each outcome is one that some order of single commands gives.

Several machines stand for several processes: each has its own appender, connections and
cache of states, and knows of the others only by the database.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import nullcontext
from datetime import UTC, datetime
from itertools import count
from typing import Any

import psycopg
import pytest

from commands.add_members import AddMembers
from commands.change_password import ChangePassword
from commands.command import Command
from commands.create_group import CreateGroup
from commands.leave_group import LeaveGroup
from commands.mark_delivered import MarkDelivered
from commands.mark_read import MarkRead
from commands.register_user import RegisterUser
from commands.remove_member import RemoveMember
from commands.send_message import SendMessage
from commands.update_group import UpdateGroup
from commands.update_profile import UpdateProfile
from domain import EVENTS
from domain.chat import GroupCreated, MemberLeft, MemberRemoved, MembersAdded
from domain.event import Event
from domain.ids import ChatId, MessageId, UserId, chat_stream, receipt_stream, user_stream
from domain.message import MessageSent, SystemMessageSent
from domain.refusals import (
    Conflict,
    NotFound,
    Refusal,
    SlugTaken,
    UsernameTaken,
    WrongPassword,
)
from infra import clock, database, keyring
from infra import executor as executing
from infra.errors import Unavailable
from infra.executor import Done, KeyReused, Request
from infra.keyring import KeyId, Keyring
from tests.commands.history import History
from tests.infra.machines import (
    PASSWORD,
    POOL_SIZE,
    Machine,
    answer,
    events,
    fetch,
    new_user_id,
    running,
    several,
)

MACHINES = 3
ROUNDS = 12
MESSAGES_PER_ROUND = 6
COLD_START_SECONDS = 40.0
KILLS = 12
KILL_PAUSE_SECONDS = 0.1
PATIENCE_SECONDS = 60.0
MAX_MESSAGES = 10_000

# Not an autovacuum that happens to be there: only a superuser may end that.
KILL_OTHERS = """
    SELECT pid, pg_terminate_backend(pid)
    FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
"""


@pytest.fixture
async def machine(database_url: str) -> AsyncIterator[Machine]:
    async with running(database_url) as machine:
        yield machine


@pytest.fixture
async def machines(database_url: str) -> AsyncIterator[list[Machine]]:
    async with several(database_url, MACHINES) as machines:
        yield machines


@pytest.fixture
def keys_looked_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """For long: else, where it took a while to get there, those at once wait for a look at the keys
    and come one by one."""
    monkeypatch.setattr(keyring, "LOOK_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr(keyring, "LEASE_SECONDS", PATIENCE_SECONDS)


async def outcomes(work: Iterable[Awaitable[Done]]) -> list[Done | Refusal]:
    """What came of each; anything but a refusal is raised."""
    found = await asyncio.gather(*work, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, Refusal):
            raise one
    return [one for one in found if isinstance(one, Done | Refusal)]


def done(found: list[Done | Refusal]) -> list[Done]:
    return [one for one in found if isinstance(one, Done)]


def refusals(found: list[Done | Refusal]) -> Counter[type[Refusal]]:
    return Counter(type(one) for one in found if isinstance(one, Refusal))


def send(chat_id: ChatId, content: str = "hello", **fields: Any) -> SendMessage:
    return SendMessage(chat_id=chat_id, content=content, **fields)


# One process


@pytest.mark.parametrize(("holds", "ends"), [(1, 4), (executing.MAX_SEALINGS, 3)])
async def test_who_is_held_up_with_a_key_at_hand_loads_it_again_before_anything_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, holds: int, ends: int
) -> None:
    anna, ben = await machine.people(2)
    chat_id = await machine.group(anna, ben)
    load, held = Keyring.load, count(1)

    async def held_up(keys: Keyring, key_ids: Iterable[KeyId]) -> None:
        await load(keys, key_ids)
        if next(held) <= holds:
            keys._looked_at -= keyring.LEASE_SECONDS

    monkeypatch.setattr(Keyring, "load", held_up)
    with nullcontext() if ends == 4 else pytest.raises(Unavailable, match="too busy"):
        await machine.run(send(chat_id), anna)
    monkeypatch.undo()
    assert await machine.executor.head() == ends


async def test_a_command_answers_its_last_position(machine: Machine) -> None:
    anna, ben, carl = await machine.people(3)
    chat_id = await machine.group(anna, ben)
    added = await machine.add(anna, chat_id, carl)
    assert added.position == 6
    assert answer(added) == {"added": [carl]}
    assert [type(event) for event in await events(machine)] == [
        GroupCreated,
        MembersAdded,
        SystemMessageSent,
    ]


async def test_a_conversation_from_registration_to_reading(machine: Machine) -> None:
    anna, ben = await machine.people(2)
    chat_id = await machine.group(anna, ben)
    first = await machine.run(send(chat_id), anna)
    message_id = MessageId(answer(first)["message_id"])
    await machine.run(send(chat_id, "and hello to you", reply_to_id=message_id), ben)
    await machine.run(MarkDelivered(chat_id=chat_id, up_to_message_id=message_id), ben)
    await machine.run(MarkRead(chat_id=chat_id), ben)
    receipt = await machine.executor.state(receipt_stream(chat_id, ben))
    assert (receipt.delivered_up_to, receipt.read_up_to) == (first.position, first.position)


async def test_a_command_that_changes_nothing_answers_the_head(machine: Machine) -> None:
    anna, _ = await machine.people(2)
    same = await machine.run(UpdateProfile(), anna)
    assert same == Done(2, b"{}")


async def test_a_password_is_kept_as_a_hash_and_checked(machine: Machine) -> None:
    anna = await machine.register("anna")
    change = ChangePassword(current_password=PASSWORD, new_password="battery staple")
    await machine.run(change, anna)
    with pytest.raises(WrongPassword):
        await machine.run(change, anna)
    state = await machine.executor.state(user_stream(anna))
    assert state.password_hash.startswith("$2b$04$")


async def test_an_import_brings_its_own_time(machine: Machine) -> None:
    anna, ben = await machine.people(2)
    chat_id = await machine.group(anna, ben)
    then = datetime(2004, 11, 15, 3, 0, 0, 123456, tzinfo=UTC)
    sent = await machine.executor.execute(Request(send(chat_id), anna, now=then))
    assert answer(sent)["created_at"] == "2004-11-15T03:00:00.123456Z"
    async with machine.pool.connection() as connection:
        statement = "SELECT recorded_at FROM event_log WHERE position = %s"
        assert await fetch(connection, statement, sent.position) == [(then,)]


async def test_presumed_commands_go_on_before_they_are_answered(machine: Machine) -> None:
    """Each rests on the one before, which is not written yet: none of them conflicts."""
    anna, ben, carl = await machine.people(3)
    chat_id = ChatId(clock.new_id())
    steps: list[tuple[Command, UserId]] = [
        (CreateGroup(name="Friends", member_ids=[ben], chat_id=chat_id), anna),
        (AddMembers(chat_id=chat_id, user_ids=[carl]), anna),
        (send(chat_id, "one"), carl),
        (RemoveMember(chat_id=chat_id, user_id=carl), anna),
        (send(chat_id, "two"), ben),
    ]
    before = machine.appender.commands
    found = await outcomes(
        machine.executor.execute(Request(command, by, presumed=True)) for command, by in steps
    )
    assert [one.position for one in done(found)] == [4, 6, 7, 9, 10]
    assert machine.appender.commands == before + len(steps)
    await check_order(machine)


async def test_presumed_commands_keep_their_order_while_keys_are_looked_after(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever seals may have to wait for it; who comes next may not overtake."""
    anna, ben, carl = await machine.people(3)
    chat_id = await machine.group(anna, ben)
    monkeypatch.setattr(keyring, "LOOK_SECONDS", 0.0)
    ids = [MessageId(clock.new_id()) for _ in range(20)]
    steps: list[tuple[Command, UserId]] = [
        (SendMessage(chat_id=chat_id, content="x", message_id=one, reply_to_id=other), by)
        for one, other, by in zip(ids, [None, *ids], [anna, ben] * 10, strict=False)
    ]
    steps += [(AddMembers(chat_id=chat_id, user_ids=[carl]), anna), (send(chat_id), carl)]
    before = machine.appender.commands
    found = await outcomes(
        machine.executor.execute(Request(command, by, presumed=True)) for command, by in steps
    )
    positions = [one.position for one in done(found)]
    assert positions == sorted(positions)
    assert machine.appender.commands == before + len(steps), "none of them conflicted"


async def test_what_was_presumed_and_not_written_is_forgotten(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben = await machine.people(2)
    chat_id = await machine.group(anna, ben)
    with monkeypatch.context() as full:
        full.setattr(machine.appender, "_queue_limit", 0)
        for command in (UpdateGroup(chat_id=chat_id, name="Foes"), send(chat_id)):
            with pytest.raises(Unavailable):
                await machine.executor.execute(Request(command, anna, presumed=True))
    await machine.run(send(chat_id), ben)
    assert (await machine.executor.state(chat_stream(chat_id))).name == "Friends"
    await check_order(machine)


async def test_a_presumed_command_that_clashed_is_decided_again(machines: list[Machine]) -> None:
    here, there, _ = machines
    anna, ben, carl = await here.people(3)
    chat_id = await here.group(anna, ben)
    await there.run(send(chat_id), anna)
    await here.add(anna, chat_id, carl)
    steps: list[Command] = [UpdateGroup(chat_id=chat_id, name=f"name {n}") for n in range(5)]
    found = await outcomes(
        there.executor.execute(Request(step, anna, presumed=True)) for step in steps
    )
    assert len(done(found)) == len(steps)
    await check_order(there)


async def test_the_same_thing_sent_again_is_answered_as_at_first(machine: Machine) -> None:
    user_id = new_user_id()
    anna = await machine.register("anna", user_id=user_id)
    assert await machine.register("anna", user_id=user_id) == anna == user_id
    ben = await machine.register("ben")
    chat_id = ChatId(clock.new_id())
    create = CreateGroup(name="Friends", member_ids=[ben], chat_id=chat_id)
    message = send(chat_id, message_id=MessageId(clock.new_id()))
    answers = [answer(await machine.run(one, anna)) for one in (create, message, create, message)]
    assert answers[:2] == answers[2:]
    with pytest.raises(Conflict):
        await machine.run(send(chat_id, "other", message_id=message.message_id), anna)
    assert len(await events(machine)) == 2


async def test_a_taken_name_is_refused_until_it_is_given_up(machine: Machine) -> None:
    anna, ben = await machine.people(2)
    with pytest.raises(UsernameTaken):
        await machine.register("user_0")
    await machine.register("User_0")
    chat_id = await machine.group(anna, ben, slug="Friends")
    with pytest.raises(SlugTaken):
        await machine.group(ben, anna, slug="fRIENDS")
    await machine.run(UpdateGroup(chat_id=chat_id, slug="others"), anna)
    other = await machine.group(ben, anna, slug="friends")
    with pytest.raises(SlugTaken):
        await machine.run(UpdateGroup(chat_id=other, slug="OTHERS"), ben)
    for member in (ben, anna):
        await machine.run(LeaveGroup(chat_id=chat_id), member)
    await machine.run(UpdateGroup(chat_id=other, slug="OTHERS"), ben)


@pytest.mark.usefixtures("keys_looked_after")
async def test_many_commands_at_once_share_batches(machine: Machine) -> None:
    anna, ben = await machine.people(2)
    chat_id = await machine.group(anna, ben)
    before = machine.appender.batches
    await asyncio.gather(*(machine.run(send(chat_id, str(n)), anna) for n in range(100)))
    assert machine.appender.batches - before < 50
    contents = [event.content for event in await events(machine) if isinstance(event, MessageSent)]
    assert sorted(map(int, filter(None, contents))) == list(range(100))


async def test_a_refused_command_costs_its_neighbours_nothing(machine: Machine) -> None:
    anna, ben, carl = await machine.people(3)
    chat_id = await machine.group(anna, ben)
    found = await outcomes(
        machine.run(send(chat_id, str(n)), (anna, carl)[n % 2]) for n in range(40)
    )
    assert len(done(found)) == 20
    assert refusals(found) == {NotFound: 20}


@pytest.mark.usefixtures("keys_looked_after")
async def test_too_much_at_once_is_refused_as_unavailable(database_url: str) -> None:
    async with running(database_url) as machine:
        anna, ben = await machine.people(2)
        chat_id = await machine.group(anna, ben)
    async with running(database_url, queue_limit=5) as machine:
        await machine.run(send(chat_id, "first"), anna)
        found = await asyncio.gather(
            *(machine.run(send(chat_id, str(n)), anna) for n in range(20)),
            return_exceptions=True,
        )
        assert sum(isinstance(one, Unavailable) for one in found) == 15
        assert sum(isinstance(one, MessageSent) for one in await events(machine)) == 6


async def test_a_full_cache_makes_room_and_stays_right(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executing, "MAX_CACHED_STREAMS", 10)
    people = await machine.people(8)
    chats = [await machine.group(people[n], people[n - 1]) for n in range(8)]
    for chat_id, owner in zip(chats, people, strict=True):
        await machine.run(send(chat_id), owner)
        assert len(machine.executor.states) <= 10


async def test_keys_are_dropped_only_when_others_need_the_room(
    machine: Machine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that was asked for and dropped in the same breath would read as a destroyed one."""
    people = await machine.people(6)
    monkeypatch.setattr("infra.keyring.MAX_CACHED_KEYS", 8)
    chat_id = await machine.group(people[0], *people[1:])
    async with running(database_url) as other:
        for sender in people:
            await other.run(send(chat_id), sender)
            found = await events(machine, [MessageSent.type])
            assert all(isinstance(one, MessageSent) and one.content for one in found)


async def test_a_small_cache_shared_by_many_at_once_stays_right(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States are dropped while others are being fetched, and come back whole."""
    people = await machine.people(6)
    chats = [await machine.group(people[n], people[n - 1]) for n in range(6)]
    monkeypatch.setattr(executing, "MAX_CACHED_STREAMS", 12)
    await outcomes(
        machine.run(UpdateGroup(chat_id=chats[n % 6], name=f"name {n}"), people[n % 6])
        for n in range(60)
    )
    monkeypatch.undo()
    await check_order(machine)


async def test_a_cold_start_of_many_at_once_needs_no_more_connections_than_there_are(
    machine: Machine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has to fetch a state and then the keys that open it."""
    # Those who wait for each other wait for longer than is waited for them here.
    monkeypatch.setattr(database, "POOL_TIMEOUT_SECONDS", 2 * COLD_START_SECONDS)
    people = await machine.people(10 * POOL_SIZE)
    async with running(database_url) as cold:
        async with asyncio.timeout(COLD_START_SECONDS):
            await outcomes(cold.run(UpdateProfile(display_name="x"), user) for user in people)


async def test_killed_connections_lose_no_acknowledged_command_and_double_none(
    machine: Machine, database_url: str
) -> None:
    """What is answered with Unavailable may have happened or not, but never twice."""
    anna, ben = await machine.people(2)
    chat_id = await machine.group(anna, ben)
    acknowledged: set[str] = set()
    unavailable: set[str] = set()
    killed: list[int] = []

    async def talk(name: str) -> None:
        for number in range(MAX_MESSAGES):
            if len(killed) >= KILLS and acknowledged:
                return
            content = f"{name}.{number}"
            try:
                await machine.run(send(chat_id, content), anna)
                acknowledged.add(content)
            except Unavailable:
                unavailable.add(content)

    async def kill() -> None:
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as admin:
            while len(killed) < KILLS:
                await asyncio.sleep(KILL_PAUSE_SECONDS)
                killed.extend(pid for pid, _ in await fetch(admin, KILL_OTHERS))

    await asyncio.gather(kill(), *(talk(str(n)) for n in range(8)))
    async with running(database_url) as fresh:
        history = await events(fresh, [MessageSent.type])
    said = Counter(one.content for one in history if isinstance(one, MessageSent))
    assert set(said.values()) == {1}
    assert acknowledged <= set(said) <= acknowledged | unavailable


# Idempotency keys


async def test_a_known_key_replays_the_answer(machine: Machine) -> None:
    anna, ben = await machine.people(2)
    chat_id = await machine.group(anna, ben)
    first = await machine.run(send(chat_id), anna, key="k")
    await machine.run(send(chat_id, "between"), anna)
    again = await machine.run(send(chat_id), anna, key="k")
    assert again == first._replace(replayed=True)
    assert (await machine.run(send(chat_id), ben, key="k")).replayed is False


async def test_a_key_with_another_body_or_command_is_refused(machine: Machine) -> None:
    anna, ben = await machine.people(2)
    chat_id = await machine.group(anna, ben)
    await machine.run(send(chat_id), anna, key="k")
    with pytest.raises(KeyReused) as refusal:
        await machine.run(send(chat_id, "other"), anna, key="k")
    assert (refusal.value.code, refusal.value.status) == ("idempotency-key-reused", 422)
    with pytest.raises(KeyReused):
        await machine.run(LeaveGroup(chat_id=chat_id), anna, key="k")
    with pytest.raises(KeyReused):
        await machine.run(send(ChatId(clock.new_id())), anna, key="k")


async def test_a_refusal_is_not_remembered(machine: Machine) -> None:
    anna, ben, carl = await machine.people(3)
    chat_id = await machine.group(anna, ben)
    with pytest.raises(NotFound):
        await machine.run(send(chat_id), carl, key="k")
    await machine.add(anna, chat_id, carl)
    assert (await machine.run(send(chat_id), carl, key="k")).replayed is False
    with pytest.raises(UsernameTaken):
        await machine.run(RegisterUser(username="user_0", password=PASSWORD), key="k")
    await machine.run(RegisterUser(username="another", password=PASSWORD), key="k")


async def test_a_key_outlives_the_right_to_send_again(machine: Machine) -> None:
    anna, ben = await machine.people(2)
    chat_id = await machine.group(anna, ben)
    first = await machine.run(send(chat_id), ben, key="k")
    await machine.run(RemoveMember(chat_id=chat_id, user_id=ben), anna)
    assert await machine.run(send(chat_id), ben, key="k") == first._replace(replayed=True)


async def test_a_key_of_a_command_that_changed_nothing_is_remembered(machine: Machine) -> None:
    [anna] = await machine.people(1)
    first = await machine.run(UpdateProfile(), anna, key="k")
    await machine.run(UpdateProfile(display_name="Anna"), anna)
    assert await machine.run(UpdateProfile(), anna, key="k") == first._replace(replayed=True)


async def test_one_key_at_once_from_several_processes_has_one_effect(
    machines: list[Machine],
) -> None:
    anna, ben = await machines[0].people(2)
    chat_id = await machines[0].group(anna, ben)
    for number in range(ROUNDS):
        message = send(chat_id, f"message {number}")
        found = await outcomes(
            machine.run(message, anna, key=str(number)) for machine in machines * 2
        )
        assert len(found) == len(done(found))
        assert len({(one.position, one.answer) for one in done(found)}) == 1
        assert [one.replayed for one in done(found)].count(False) == 1
    assert sum(isinstance(one, MessageSent) for one in await events(machines[0])) == ROUNDS


async def test_one_key_at_once_with_different_bodies_lets_one_through(
    machines: list[Machine],
) -> None:
    anna, ben = await machines[0].people(2)
    chat_id = await machines[0].group(anna, ben)
    found = await outcomes(
        machine.run(send(chat_id, str(number)), anna, key="k")
        for number, machine in enumerate(machines)
    )
    assert len(done(found)) == 1
    assert refusals(found) == {KeyReused: MACHINES - 1}


# Several processes


async def test_one_name_wanted_by_all_at_once_goes_to_one(machines: list[Machine]) -> None:
    for number in range(ROUNDS):
        register = RegisterUser(username=f"wanted_{number}", password=PASSWORD)
        found = await outcomes(machine.run(register) for machine in machines)
        assert len(done(found)) == 1
        assert refusals(found) == {UsernameTaken: MACHINES - 1}


async def test_no_message_of_a_removed_member_lands_after_the_removal(
    machines: list[Machine],
) -> None:
    """Whichever process took which command; and what was acknowledged is there."""
    first = machines[0]
    anna, ben, carl = await first.people(3)
    chat_id = await first.group(anna, ben, carl)
    acknowledged: set[str] = set()

    async def say(machine: Machine, content: str) -> Done:
        sent = await machine.run(send(chat_id, content), ben)
        acknowledged.add(content)
        return sent

    for number in range(ROUNDS):
        remove, add = (
            RemoveMember(chat_id=chat_id, user_id=ben),
            AddMembers(chat_id=chat_id, user_ids=[ben]),
        )
        talk: list[Awaitable[Done]] = [
            say(machines[n % MACHINES], f"{number}.{n}") for n in range(MESSAGES_PER_ROUND)
        ]
        talk.insert(number % MESSAGES_PER_ROUND, machines[-1 - number % 2].run(remove, anna))
        found = await outcomes(talk)
        assert set(refusals(found)) <= {NotFound}
        await machines[number % MACHINES].run(add, anna)
    history = await events(first)
    assert said_by_members_only(history) == acknowledged


def said_by_members_only(history: list[Event]) -> set[str]:
    """Folds membership by hand; every message must be of a member of its moment."""
    members: set[UserId] = set()
    said: set[str] = set()
    for event in history:
        match event:
            case GroupCreated():
                members |= {event.owner_id, *event.member_ids}
            case MembersAdded():
                members |= set(event.user_ids)
            case MemberRemoved() | MemberLeft():
                members.discard(event.user_id)
            case MessageSent():
                assert event.sender_id in members
                said.add(event.content or "")
    return said


async def test_clashing_commands_of_several_processes_come_out_as_in_some_order(
    machines: list[Machine],
) -> None:
    """The log is that order: folded by hand, each accepted command was right at its moment."""
    first = machines[0]
    people = await first.people(5)
    anna, ben, carl, dora, eve = people
    chat_id = await first.group(anna, ben, carl)
    for number in range(ROUNDS):
        clashing: list[tuple[Command, UserId]] = [
            (AddMembers(chat_id=chat_id, user_ids=[dora, eve]), anna),
            (AddMembers(chat_id=chat_id, user_ids=[eve]), anna),
            (RemoveMember(chat_id=chat_id, user_id=carl), anna),
            (AddMembers(chat_id=chat_id, user_ids=[carl]), anna),
            (UpdateGroup(chat_id=chat_id, name=f"name {number}"), anna),
            (LeaveGroup(chat_id=chat_id), ben),
            (LeaveGroup(chat_id=chat_id), eve),
            (LeaveGroup(chat_id=chat_id), anna),
            (send(chat_id, f"from Carl {number}"), carl),
            (MarkRead(chat_id=chat_id), ben),
        ]
        await outcomes(
            machines[(number + n) % MACHINES].run(command, by)
            for n, (command, by) in enumerate(clashing)
        )
        chat = await first.executor.state(chat_stream(chat_id))
        assert chat.owner_id in chat.roles
        back = [user for user in people if user not in chat.roles]
        if back:
            await first.add(chat.owner_id, chat_id, *back)
        await hand_to(machines[number % MACHINES], chat_id, anna, people)
    await check_order(first)


async def hand_to(machine: Machine, chat_id: ChatId, wanted: UserId, people: list[UserId]) -> None:
    """Everybody leaves who owns the group before the wanted one does, and is added again."""
    for _ in people:
        chat = await machine.executor.state(chat_stream(chat_id))
        if chat.owner_id == wanted:
            return
        left = await machine.run(LeaveGroup(chat_id=chat_id), chat.owner_id)
        heir = UserId(answer(left)["new_owner_id"])
        await machine.add(heir, chat_id, chat.owner_id)


async def check_order(machine: Machine) -> None:
    """Folds the whole log in memory: each stream's state is what the machine says it is."""
    replayed = History()
    for event in await events(machine, [one.type for one in EVENTS]):
        if isinstance(event, MessageSent):
            assert replayed.state(chat_stream(event.chat_id)).is_open_to(event.sender_id)
        if isinstance(event, MembersAdded):
            chat = replayed.state(chat_stream(event.chat_id))
            assert chat.roles[event.by] == "owner"
            assert not set(event.user_ids) & set(chat.roles)
        if isinstance(event, MemberRemoved | MemberLeft):
            assert event.user_id in replayed.state(chat_stream(event.chat_id)).roles
        replayed.record(event)
    for stream, (version, state) in replayed.states.items():
        if not stream.startswith("message-"):
            assert await machine.executor.state(stream) == state
            assert machine.executor.states[stream].version == version


async def test_a_stale_cache_neither_refuses_nor_confirms(machines: list[Machine]) -> None:
    """What a machine last saw was overtaken by the others: it asks the log before it answers."""
    here, there, _ = machines
    anna, ben, carl = await here.people(3)
    chat_id = await here.group(anna, ben)
    with pytest.raises(NotFound):
        await there.run(send(chat_id), carl)
    await here.add(anna, chat_id, carl)
    await there.run(send(chat_id), carl)
    await here.run(UpdateProfile(display_name="Carl"), carl)
    await there.run(UpdateProfile(display_name="Karl"), carl)
    await here.run(UpdateProfile(display_name="Carl"), carl)
    state = await there.executor.state(user_stream(carl))
    assert state.display_name == "Carl"


async def test_marks_of_several_processes_never_move_back(machines: list[Machine]) -> None:
    anna, ben = await machines[0].people(2)
    chat_id = await machines[0].group(anna, ben)
    sent = [
        MessageId(answer(await machines[0].run(send(chat_id, str(n)), anna))["message_id"])
        for n in range(ROUNDS)
    ]
    marks: list[Command] = [
        mark(chat_id=chat_id, up_to_message_id=message_id)
        for message_id in sent
        for mark in (MarkRead, MarkDelivered)
    ]
    await outcomes(
        machines[n % MACHINES].run(mark, ben) for n, mark in enumerate(marks[::-1] + marks)
    )
    found: list[Any] = await events(machines[0], ["messages_read", "messages_delivered"])
    steps = [(event.delivered_up_to, event.read_up_to) for event in found]
    assert steps == sorted(steps)
    assert all(read <= delivered for delivered, read in steps)
    assert steps[-1][0] == steps[-1][1] == 3 + ROUNDS
