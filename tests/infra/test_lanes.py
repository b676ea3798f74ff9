"""Commands of a lane take effect in the order they came, whatever meets them on their way."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from commands.send_message import SendMessage
from commands.update_group import UpdateGroup
from domain.chat import GroupUpdated
from domain.ids import ChatId, MessageId, StreamId, UserId
from domain.message import MessageSent
from infra import clock, keyring
from infra.executor import Request
from infra.lanes import Lane
from tests.infra.machines import Machine, events, running, several

SENT_TOGETHER = 32
ROUNDS = 12
SOON_SECONDS = 0.05
WAIT_SECONDS = 60.0


@pytest.fixture
async def machine(database_url: str) -> AsyncIterator[Machine]:
    async with running(database_url) as machine:
        yield machine


async def send(machine: Machine, chat_id: ChatId, sender: UserId, lane: Lane) -> list[MessageId]:
    """Many together; their ids in the order they were sent."""
    ids = [MessageId(clock.new_id()) for _ in range(SENT_TOGETHER)]
    requests = [
        Request(SendMessage(chat_id=chat_id, content="x", message_id=one), sender, lane=lane)
        for one in ids
    ]
    await asyncio.gather(*(machine.executor.execute(request) for request in requests))
    return ids


async def written(machine: Machine) -> list[MessageId]:
    return [sent.message_id for sent in await events(machine, [MessageSent.type])]


async def test_what_is_sent_together_is_written_in_its_order_by_few_batches(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long it takes to get there, none of them has to wait for a look at the keys.
    monkeypatch.setattr(keyring, "LOOK_SECONDS", WAIT_SECONDS)
    monkeypatch.setattr(keyring, "LEASE_SECONDS", WAIT_SECONDS)
    anna, ben = await machine.people(2)
    chat_id = await machine.group(anna, ben)
    await send(machine, chat_id, anna, Lane())  # it has the keys and the chat's state now
    before = machine.appender.batches
    sent = await send(machine, chat_id, anna, Lane())
    assert (await written(machine))[-SENT_TOGETHER:] == sent
    assert machine.appender.batches - before <= SENT_TOGETHER // 4


async def test_a_process_that_knows_nothing_yet_keeps_the_order(
    database_url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has to wait for what the next then has at hand."""
    anna, ben = await machine.people(2)
    chat_id = await machine.group(anna, ben)
    monkeypatch.setattr(keyring, "LOOK_SECONDS", 0.0)
    async with running(database_url) as other:
        sent = await send(other, chat_id, anna, Lane())
        assert await written(other) == sent


async def test_the_order_holds_while_the_chat_changes_under_them(database_url: str) -> None:
    async with several(database_url, 2) as (here, there):
        anna, ben = await here.people(2)
        chat_id = await here.group(anna, ben)
        lane, sent = Lane(), []

        async def rename() -> None:
            for number in range(ROUNDS * 4):
                await there.run(UpdateGroup(chat_id=chat_id, name=f"name {number}"), anna)

        renaming = asyncio.create_task(rename())
        for _ in range(ROUNDS):
            sent += await send(here, chat_id, ben, lane)
        await renaming
        assert await written(here) == sent
        assert len(await events(here, [GroupUpdated.type])) == ROUNDS * 4


async def test_two_that_saw_different_versions_are_not_under_way_at_once() -> None:
    lane, one, other = Lane(), StreamId("chat-1"), StreamId("chat-2")
    first, second, third, fourth = (lane.join() for _ in range(4))
    await first.send_off({one: 1})
    await second.send_off({one: 1, other: 5})
    third_goes = asyncio.create_task(third.send_off({one: 2}))
    fourth_goes = asyncio.create_task(fourth.send_off({other: 6}))
    first.leave()
    await asyncio.sleep(SOON_SECONDS)
    assert not third_goes.done(), "one that saw the first version is still under way"
    second.leave()
    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.gather(third_goes, fourth_goes)


async def test_one_that_comes_back_goes_before_all_that_came_after_it() -> None:
    lane = Lane()
    first, second, third = (lane.join() for _ in range(3))
    await first.send_off({})
    await second.turn()
    first.come_back()
    second_goes = asyncio.create_task(second.send_off({}))
    third_goes = asyncio.create_task(third.turn())
    await asyncio.sleep(SOON_SECONDS)
    assert not second_goes.done()
    await first.send_off({})
    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.gather(second_goes, third_goes)
    third.leave()
    second.leave()
    first.leave()


async def test_one_that_waits_for_the_last_under_way_goes_when_that_comes_back() -> None:
    lane, stream = Lane(), StreamId("chat-1")
    first, second = lane.join(), lane.join()
    await first.send_off({stream: 1})
    await second.send_off({stream: 1})
    first.come_back()
    first_goes = asyncio.create_task(first.send_off({stream: 2}))
    await asyncio.sleep(SOON_SECONDS)
    assert not first_goes.done()
    second.come_back()
    async with asyncio.timeout(WAIT_SECONDS):
        await first_goes


async def test_one_that_is_cancelled_leaves_its_place_to_the_next(machine: Machine) -> None:
    anna, ben = await machine.people(2)
    chat_id = await machine.group(anna, ben)
    lane = Lane()
    first, second = (
        asyncio.create_task(
            machine.executor.execute(
                Request(SendMessage(chat_id=chat_id, content="x"), anna, lane=lane)
            )
        )
        for _ in range(2)
    )
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(WAIT_SECONDS):
        assert (await second).position
