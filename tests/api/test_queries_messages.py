"""Queries about messages: reactions, deletions, replies and how far a message got."""

from datetime import date

import pytest

from infra import partitions
from tests.api.conversations import direct, group, say
from tests.api.served import PASSWORD, Api, Json, Person, problem
from tests.infra.daemons import connected

MOVE = "UPDATE messages SET created_at = %(moment)s WHERE id = %(id)s"
MOVE_PLACE = "UPDATE message_places SET created_at = %(moment)s WHERE id = %(id)s"

People = tuple[Person, Person, Person]


async def react(person: Person, message_id: str, *emoji: str) -> int:
    position = 0
    for one in emoji:
        done = await person.do("add-reaction", message_id=message_id, emoji=one)
        position = done["position"]
    return position


# Reactions


async def test_reactions_are_grouped_in_the_order_of_first_use(people: People) -> None:
    ann, bob, eve = people
    chat_id = await group(ann, bob, eve)
    [sent, other] = await say(ann, chat_id, "one", "two")
    message_id = sent["message_id"]
    await react(bob, message_id, "👍", ":tada:")
    await react(eve, message_id, "❤️")
    await react(ann, message_id, "❤️")
    position = await react(ann, message_id, "👍")
    assert await ann.see(f"/v1/messages/{message_id}/reactions", position) == {
        "items": [
            {"emoji": "👍", "count": 2, "user_ids": [bob.user_id, ann.user_id]},
            {"emoji": ":tada:", "count": 1, "user_ids": [bob.user_id]},
            {"emoji": "❤️", "count": 2, "user_ids": [eve.user_id, ann.user_id]},
        ]
    }
    expected = [
        {"emoji": "👍", "count": 2, "me": False},
        {"emoji": ":tada:", "count": 1, "me": False},
        {"emoji": "❤️", "count": 2, "me": True},
    ]
    assert (await eve.see(f"/v1/messages/{message_id}"))["reactions"] == expected
    page = (await eve.see(f"/v1/chats/{chat_id}/messages"))["items"]
    assert {item["id"]: item["reactions"] for item in page} == {
        message_id: expected,
        other["message_id"]: [],
    }
    assert await eve.see(f"/v1/messages/{other['message_id']}/reactions") == {"items": []}


async def test_a_reaction_taken_back_is_gone(people: People) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [sent] = await say(ann, chat_id, "one")
    await react(bob, sent["message_id"], "👍", "❤️")
    gone = await bob.do("remove-reaction", message_id=sent["message_id"], emoji="👍")
    shown = await bob.see(f"/v1/messages/{sent['message_id']}", gone["position"])
    assert shown["reactions"] == [{"emoji": "❤️", "count": 1, "me": True}]


async def test_reactions_are_shown_to_participants_only(people: People) -> None:
    ann, bob, eve = people
    chat_id = await group(ann, bob)
    [sent] = await say(ann, chat_id, "one")
    position = await react(bob, sent["message_id"], "👍")
    path = f"/v1/messages/{sent['message_id']}/reactions"
    problem(await eve.look(path, position), 404, "not-found")


# Deletions and replies


async def test_a_deleted_message_and_a_reply_to_it_say_so(people: People) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [sent] = await say(ann, chat_id, "secret")
    await react(bob, sent["message_id"], "👍")
    reply = await bob.do(
        "send-message", chat_id=chat_id, content="why?", reply_to_id=sent["message_id"]
    )
    deleted = await ann.do("delete-message", message_id=sent["message_id"])
    shown = await bob.see(f"/v1/messages/{sent['message_id']}", deleted["position"])
    assert (shown["content"], shown["is_deleted"]) == ("[Deleted]", True)
    assert shown["deleted_at"] >= shown["created_at"]
    assert (shown["metadata"], shown["reactions"]) == ({}, [])
    answered = await ann.see(f"/v1/messages/{reply['message_id']}")
    assert answered["reply_to"] == {
        "id": sent["message_id"],
        "sender": {"id": ann.user_id, "display_name": "ann"},
        "content": "[Message Deleted]",
    }
    assert (await bob.see(f"/v1/messages/{sent['message_id']}/reactions"))["items"] == []
    page = await bob.see(f"/v1/chats/{chat_id}/messages")
    assert [item["seq"] for item in page["items"]] == [2, 1]


async def test_a_reply_to_what_was_said_months_ago_shows_it(
    people: People, database_url: str
) -> None:
    """A page looks into its own months only; what is replied to may be of any other."""
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    asked, gone = await say(ann, chat_id, "well?", "never mind")
    first = [asked["message_id"], gone["message_id"]]
    answers = [
        await bob.do("send-message", chat_id=chat_id, content="yes", reply_to_id=one)
        for one in first
    ]
    deleted = await ann.do("delete-message", message_id=gone["message_id"])
    path = f"/v1/chats/{chat_id}/messages"
    before = await ann.see(path, deleted["position"], limit=2)
    assert [item["reply_to"]["content"] for item in before["items"]] == [
        "[Message Deleted]",
        "well?",
    ]
    alone = [await ann.see(f"/v1/messages/{answer['message_id']}") for answer in answers]
    async with connected(database_url) as connection:
        async with connection.transaction():
            long_ago = (date(2020, 2, 1), date(2020, 3, 1))
            await partitions.Known().ensure(connection, "messages", long_ago)
        for moved, moment in zip(first, ("2020-02-01Z", "2020-03-31Z"), strict=True):
            await connection.execute(MOVE, {"id": moved, "moment": moment})
            await connection.execute(MOVE_PLACE, {"id": moved, "moment": moment})
    assert await ann.see(path, limit=2) == before
    assert [await ann.see(f"/v1/messages/{answer['message_id']}") for answer in answers] == alone
    whole = (await ann.see(path))["items"]
    assert [item["id"] for item in whole if item["id"] in first] == first[::-1]


async def test_an_edited_message_says_so_and_shows_its_new_text(people: People) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [sent] = await say(ann, chat_id, "frist")
    edited = await ann.do("edit-message", message_id=sent["message_id"], content="first")
    shown = await bob.see(f"/v1/messages/{sent['message_id']}", edited["position"])
    assert (shown["content"], shown["is_edited"]) == ("first", True)
    assert shown["edited_at"] >= shown["created_at"]
    chat = await bob.see(f"/v1/chats/{chat_id}")
    assert chat["last_message"] == shown


async def test_erased_messages_show_that_they_were_there(people: People) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [sent] = await say(bob, chat_id, "secret")
    reply = await ann.do(
        "send-message", chat_id=chat_id, content="oh", reply_to_id=sent["message_id"]
    )
    gone = await bob.do("delete-account", password=PASSWORD, erase_messages=True)
    shown = await ann.see(f"/v1/messages/{sent['message_id']}", gone["position"])
    assert (shown["content"], shown["is_deleted"]) == ("[Deleted]", False)
    assert shown["sender"] == {"id": bob.user_id, "display_name": "[Deleted User]"}
    answered = await ann.see(f"/v1/messages/{reply['message_id']}")
    assert answered["reply_to"]["content"] == "[Deleted]"


# Delivery


@pytest.fixture
async def read_by_some(whole_api: Api, people: People) -> tuple[Person, Person, str, Json]:
    """A message of Ann's to four: one has read it, one got it, two know nothing of it."""
    ann, bob, eve = people
    others = [await whole_api.person(name) for name in ("joe", "kim")]
    chat_id = await group(ann, bob, eve, *others)
    [sent] = await say(ann, chat_id, "hello")
    await bob.do("mark-read", chat_id=chat_id)
    last = await eve.do("mark-delivered", chat_id=chat_id, up_to_message_id=sent["message_id"])
    return ann, bob, chat_id, {**sent, "position": last["position"]}


async def test_a_sender_sees_how_far_their_message_got(
    read_by_some: tuple[Person, Person, str, Json],
) -> None:
    ann, bob, chat_id, sent = read_by_some
    got = {"recipients": 4, "delivered": 2, "read": 1}
    path = f"/v1/messages/{sent['message_id']}"
    assert (await ann.see(path, sent["position"]))["delivery"] == got
    [item] = (await ann.see(f"/v1/chats/{chat_id}/messages"))["items"]
    assert item["delivery"] == got
    assert (await ann.see(f"/v1/chats/{chat_id}"))["last_message"] == item
    told = await ann.see(f"{path}/delivery")
    statuses = [one["status"] for one in told.pop("items")]
    assert (told, sorted(statuses)) == (got, ["delivered", "pending", "pending", "read"])
    assert "delivery" not in await bob.see(path)
    problem(await bob.look(f"{path}/delivery"), 403, "forbidden")


async def test_a_message_to_nobody_has_no_recipients(people: People) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    await bob.do("leave-group", chat_id=chat_id)
    [sent] = await say(ann, chat_id, "anybody?")
    told = await ann.see(f"/v1/messages/{sent['message_id']}/delivery", sent["position"])
    assert told == {"recipients": 0, "delivered": 0, "read": 0, "items": []}
    shown = await ann.see(f"/v1/messages/{sent['message_id']}")
    assert shown["delivery"] == {"recipients": 0, "delivered": 0, "read": 0}


async def test_history_of_a_direct_chat_stays_readable_after_removal(people: People) -> None:
    ann, bob, _ = people
    chat_id = await direct(ann, bob)
    [sent] = await say(ann, chat_id, "hi")
    removed = await bob.do("remove-contact", user_id=ann.user_id)
    for person in (ann, bob):
        page = await person.see(f"/v1/chats/{chat_id}/messages", removed["position"])
        assert [item["id"] for item in page["items"]] == [sent["message_id"]]
