"""GET /v1/state: all that a client starts from, as of one position."""

import asyncio

import pytest

from api.queries import state
from projections import PROJECTIONS
from tests.api.conversations import befriend, direct, group, say
from tests.api.served import Person, good, problem, serving
from tests.infra.daemons import projected, projecting

People = tuple[Person, Person, Person]


async def test_the_state_is_what_the_single_queries_show(people: People) -> None:
    ann, bob, eve = people
    direct_id = await direct(ann, bob)
    group_id = await group(ann, bob, eve)
    await ann.do("request-contact", user_id=eve.user_id)
    await say(bob, group_id, "one", "two")
    [last] = await say(bob, direct_id, "three")
    response = await ann.look("/v1/state", last["position"])
    shown = good(response)
    assert shown["position"] == last["position"] == int(response.headers["log-position"])
    chats = await ann.see("/v1/chats")
    contacts = await ann.see("/v1/contacts")
    assert shown == {
        "position": last["position"],
        "chats": chats["items"],
        "next_cursor": None,
        "unread": await ann.see("/v1/unread"),
        "contacts": contacts["items"],
        "contacts_cursor": None,
    }
    assert (len(shown["chats"]), shown["unread"]["messages"], len(shown["contacts"])) == (2, 3, 2)


async def test_somebody_new_has_an_empty_state(people: People) -> None:
    ann, *_ = people
    assert await ann.see("/v1/state", 3) == {
        "position": 3,
        "chats": [],
        "next_cursor": None,
        "unread": {"chats": 0, "messages": 0, "items": []},
        "contacts": [],
        "contacts_cursor": None,
    }


async def test_the_state_goes_on_where_its_cursors_say(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "MAX_CHATS", 2)
    ann, bob, _ = people
    chats = [await group(ann, bob) for _ in range(3)]
    [last] = await say(bob, chats[0], "hi")
    shown = await ann.see("/v1/state", last["position"])
    assert [chat["id"] for chat in shown["chats"]] == [chats[0], chats[2]]
    rest = await ann.see("/v1/chats", cursor=shown["next_cursor"])
    assert [chat["id"] for chat in rest["items"]] == [chats[1]]


async def test_a_state_waits_until_all_read_models_agree_on_what_concerns_the_caller(
    database_url: str, nats_url: str
) -> None:
    most = [one for one in PROJECTIONS if one.name != "unread"]
    rest = [one for one in PROJECTIONS if one.name == "unread"]
    async with serving(database_url, nats_url, read_wait_seconds=0.5) as api:
        async with projecting(database_url, nats_url):
            ann, bob, eve = [await api.person(name) for name in ("ann", "bob", "eve")]
            chat_id = await group(ann, bob)
            position = await befriend(ann, eve)
            await projected(database_url)
            for person in (ann, bob, eve):
                await person.see("/v1/state", position)
        async with projecting(database_url, nats_url, most):
            [sent] = await say(ann, chat_id, "hi")
            await projected(database_url, [one.name for one in most])
            await ann.see(f"/v1/messages/{sent['message_id']}", sent["position"])
            for person in (ann, bob):
                problem(await person.look("/v1/state"), 503, "read-model-behind")
            # What is said in a chat that she is not in makes no difference to her.
            assert (await eve.see("/v1/state"))["position"] == position
        async with projecting(database_url, nats_url, rest):
            await projected(database_url)
            shown = await bob.see("/v1/state", sent["position"])
    assert shown["unread"]["messages"] == shown["chats"][0]["unread_count"] == 1


async def test_states_read_while_others_write_never_contradict_themselves(
    people: People,
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)

    async def write() -> None:
        for n in range(40):
            await say(ann, chat_id, f"{n}")

    writing = asyncio.create_task(write())
    positions = []
    while not writing.done():
        shown = await bob.see("/v1/state")
        positions.append(shown["position"])
        for chat in shown["chats"]:
            last = chat["last_message"]
            # All but the chat's creation are messages, and none is read.
            assert chat["unread_count"] == (last["seq"] if last else 0)
            assert last is None or last["position"] <= shown["position"]
    await writing
    assert positions == sorted(positions)
