"""What two processes do at the same moment comes out as if one had come after the other.

Each machine stands for a process: its own connections and cache, known to the others only by
the database.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable

import pytest

from commands.accept_contact import AcceptContact
from commands.add_members import AddMembers
from commands.add_reaction import AddReaction
from commands.block_contact import BlockContact
from commands.change_role import ChangeRole
from commands.create_group import CreateGroup
from commands.delete_account import DeleteAccount
from commands.delete_group import DeleteGroup
from commands.edit_message import EditMessage
from commands.leave_group import LeaveGroup
from commands.open_direct_chat import OpenDirectChat
from commands.remove_contact import RemoveContact
from commands.request_contact import RequestContact
from commands.send_message import SendMessage
from commands.transfer_ownership import TransferOwnership
from commands.update_group import UpdateGroup
from domain.chat import MAX_PARTICIPANTS
from domain.ids import ChatId, MessageId, UserId, chat_stream, contact_stream, message_stream
from domain.refusals import Conflict, NotContacts, NotFound, Refusal
from infra.executor import Done
from tests.infra.machines import PASSWORD, Machine, answer, several

PROCESSES = 3
ROUNDS = 8
MESSAGES = 5


@pytest.fixture
async def machines(database_url: str) -> AsyncIterator[list[Machine]]:
    async with several(database_url, PROCESSES) as machines:
        yield machines


async def at_once(work: Iterable[Awaitable[Done]]) -> list[Done | Refusal]:
    """What came of each; anything but a refusal is raised."""
    found = await asyncio.gather(*work, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, Refusal):
            raise one
    return [one for one in found if isinstance(one, Done | Refusal)]


async def registered(machine: Machine, names: Iterable[str]) -> list[UserId]:
    return await asyncio.gather(*map(machine.register, names))


def batched(names: list[str], size: int) -> list[list[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]


async def befriend(machine: Machine, one: UserId, other: UserId) -> None:
    await machine.run(RequestContact(user_id=other), one)
    await machine.run(AcceptContact(user_id=one), other)


async def test_who_ask_each_other_at_once_are_contacts(machines: list[Machine]) -> None:
    first, second, third = machines
    for number in range(ROUNDS):
        one, other = [await first.register(f"pair_{number}_{side}") for side in range(2)]
        found = await at_once(
            (
                first.run(RequestContact(user_id=other), one),
                second.run(RequestContact(user_id=one), other),
            )
        )
        assert all(isinstance(outcome, Done) for outcome in found)
        contact = await third.executor.state(contact_stream(one, other))
        assert contact.is_accepted


async def test_a_pair_that_opens_its_chat_at_once_has_one(machines: list[Machine]) -> None:
    first, third = machines[0], machines[-1]
    for number in range(ROUNDS):
        one, other = [await first.register(f"pair_{number}_{side}") for side in range(2)]
        await befriend(first, one, other)
        found = await at_once(
            machine.run(OpenDirectChat(user_id=them), me)
            for machine in machines
            for me, them in ((one, other), (other, one))
        )
        answers = [answer(outcome) for outcome in found if isinstance(outcome, Done)]
        assert len(answers) == 2 * PROCESSES
        assert len({opened["chat_id"] for opened in answers}) == 1
        assert sum(opened["created"] for opened in answers) == 1
        chat = await third.executor.state(chat_stream(ChatId(answers[0]["chat_id"])))
        assert sorted(chat.roles) == sorted((one, other))


async def test_nothing_is_said_after_a_block_or_a_removal(machines: list[Machine]) -> None:
    first, second, third = machines
    for number, end in enumerate((BlockContact, RemoveContact) * 2):
        one, other = [await first.register(f"pair_{number}_{side}") for side in range(2)]
        await befriend(first, one, other)
        opened = answer(await first.run(OpenDirectChat(user_id=other), one))
        chat_id = ChatId(opened["chat_id"])
        ended, *sent = await at_once(
            (
                first.run(end(user_id=other), one),
                *(
                    machine.run(SendMessage(chat_id=chat_id, content="hello"), other)
                    for machine in (second, third)
                    for _ in range(MESSAGES)
                ),
            )
        )
        assert isinstance(ended, Done)
        positions = [outcome.position for outcome in sent if isinstance(outcome, Done)]
        assert all(position < ended.position for position in positions)
        with pytest.raises(Refusal):
            await third.run(SendMessage(chat_id=chat_id, content="late"), other)


async def test_a_group_never_has_more_than_it_may(machines: list[Machine]) -> None:
    first = machines[0]
    names = [f"user_{number}" for number in range(MAX_PARTICIPANTS + 3 * PROCESSES)]
    users = [user for some in batched(names, 100) for user in await registered(first, some)]
    owner, members, rest = users[0], users[1 : MAX_PARTICIPANTS - 4], users[MAX_PARTICIPANTS - 4 :]
    chat_id = await first.group(owner, *members)
    room = MAX_PARTICIPANTS - 1 - len(members)
    found = await at_once(
        machines[n % PROCESSES].run(AddMembers(chat_id=chat_id, user_ids=[user]), owner)
        for n, user in enumerate(rest)
    )
    assert sum(isinstance(outcome, Done) for outcome in found) == room
    assert all(isinstance(outcome, Done | Conflict) for outcome in found)
    chat = await first.executor.state(chat_stream(chat_id))
    assert len(chat.roles) == MAX_PARTICIPANTS


async def test_a_slug_that_is_given_up_goes_to_one(machines: list[Machine]) -> None:
    first = machines[0]
    owner, member = await first.people(2)
    held = await first.group(owner, member, slug="wanted")
    others = [await first.group(owner, member) for _ in range(ROUNDS)]
    await first.run(DeleteGroup(chat_id=held), owner)
    found = await at_once(
        machines[n % PROCESSES].run(UpdateGroup(chat_id=chat_id, slug="Wanted"), owner)
        for n, chat_id in enumerate(others)
    )
    assert sum(isinstance(outcome, Done) for outcome in found) == 1


async def test_a_group_has_one_owner_whoever_hands_it_on_at_once(
    machines: list[Machine],
) -> None:
    first, second, third = machines
    users = await first.people(4)
    owner, admin, *members = users
    for _ in range(ROUNDS):
        chat_id = await first.group(owner, admin, *members)
        await first.run(ChangeRole(chat_id=chat_id, user_id=admin, role="admin"), owner)
        await at_once(
            (
                first.run(TransferOwnership(chat_id=chat_id, user_id=members[0]), owner),
                second.run(LeaveGroup(chat_id=chat_id), owner),
                third.run(LeaveGroup(chat_id=chat_id), admin),
            )
        )
        chat = await first.executor.state(chat_stream(chat_id))
        assert [user for user, role in chat.roles.items() if role == "owner"] == [chat.owner_id]
        assert admin not in chat.roles


async def test_of_ten_reactions_at_most_ten_stay_however_they_come(
    machines: list[Machine],
) -> None:
    first = machines[0]
    owner, member = await first.people(2)
    chat_id = await first.group(owner, member)
    sent = answer(await first.run(SendMessage(chat_id=chat_id, content="hello"), owner))
    message_id = MessageId(sent["message_id"])
    found = await at_once(
        machines[n % PROCESSES].run(AddReaction(message_id=message_id, emoji=f":n{n}:"), member)
        for n in range(15)
    )
    assert sum(isinstance(outcome, Done) for outcome in found) == 10
    message = await first.executor.state(message_stream(message_id))
    assert len(message.reactions) == 10


async def test_nothing_of_a_user_lands_after_the_end_of_the_account(
    machines: list[Machine],
) -> None:
    first, second, third = machines
    for number in range(ROUNDS):
        one, other = [await first.register(f"pair_{number}_{side}") for side in range(2)]
        chat_id = await first.group(other, one)
        sent = answer(await first.run(SendMessage(chat_id=chat_id, content="first"), one))
        message_id = MessageId(sent["message_id"])
        deleted, *found = await at_once(
            (
                first.run(DeleteAccount(password=PASSWORD), one),
                second.run(SendMessage(chat_id=chat_id, content="hello"), one),
                third.run(EditMessage(message_id=message_id, content="edited"), one),
                second.run(AddReaction(message_id=message_id, emoji="👍"), one),
                third.run(CreateGroup(name="Mine", member_ids=[other]), one),
                second.run(CreateGroup(name="Ours", member_ids=[one]), other),
                third.run(RequestContact(user_id=one), other),
            )
        )
        assert isinstance(deleted, Done)
        positions = [outcome.position for outcome in found if isinstance(outcome, Done)]
        assert all(position < deleted.position for position in positions)
        with pytest.raises(NotFound):
            await third.run(SendMessage(chat_id=chat_id, content="late"), one)


async def test_a_direct_chat_falls_silent_with_the_account_of_one(
    machines: list[Machine],
) -> None:
    first, second, third = machines
    one, other = await first.people(2)
    await befriend(first, one, other)
    opened = answer(await first.run(OpenDirectChat(user_id=other), one))
    chat_id = ChatId(opened["chat_id"])
    deleted, *sent = await at_once(
        (
            first.run(DeleteAccount(password=PASSWORD), one),
            *(
                machine.run(SendMessage(chat_id=chat_id, content="hello"), other)
                for machine in (second, third)
                for _ in range(MESSAGES)
            ),
        )
    )
    assert isinstance(deleted, Done)
    positions = [outcome.position for outcome in sent if isinstance(outcome, Done)]
    assert all(position < deleted.position for position in positions)
    with pytest.raises(NotContacts):
        await third.run(SendMessage(chat_id=chat_id, content="late"), other)
