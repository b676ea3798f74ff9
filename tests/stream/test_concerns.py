"""Whom what happens concerns, from one table; and what is told of the past, and what no more.

It is about one owner, of a group and of a direct chat. The columns are what the viewer is:

    owner      themselves, on another device     former     removed from the group before
    member     of the group                      blocked    a contact whom the owner blocks
    contact    with a direct chat with them      stranger   nobody to them
"""

import re
from typing import Any

from tests.api.conversations import befriend, direct, group, say
from tests.api.served import PASSWORD, Api, Json, Person
from tests.stream.client import Client, connected
from tests.stream.started import started, token

People = tuple[Person, Person, Person]
MOST_EVENTS = 20  # of one command: an account's end takes chats and contacts with it
VIEWERS = ("owner", "member", "contact", "former", "blocked", "stranger")

TABLE = """
                              owner  member contact former blocked stranger
message_sent                  yes    yes    no      no     no      no
message_sent direct           yes    no     yes     no     no      no
message_edited                yes    yes    no      no     no      no
message_edited direct         yes    no     yes     no     no      no
reaction_added                yes    yes    no      no     no      no
reaction_added direct         yes    no     yes     no     no      no
reaction_removed              yes    yes    no      no     no      no
messages_read                 yes    yes    no      no     no      no
messages_delivered direct     yes    no     yes     no     no      no
message_deleted               yes    yes    no      no     no      no
message_deleted direct        yes    no     yes     no     no      no
group_updated                 yes    yes    no      no     no      no
role_changed                  yes    yes    no      no     no      no
ownership_transferred         yes    yes    no      no     no      no
members_added                 yes    yes    no      no     no      no
member_removed                yes    yes    no      no     no      no
member_left                   yes    yes    no      no     no      no
contact_requested             yes    no     no      no     no      yes
contact_accepted              yes    no     no      no     no      yes
contact_blocked               yes    no     no      no     no      no
contact_unblocked             yes    no     no      no     no      no
contact_removed               yes    no     no      no     no      yes
profile_updated               yes    yes    yes     no     yes     no
password_changed              yes    no     no      no     no      no
group_deleted                 yes    yes    no      no     no      no
account_deleted               no     yes    yes     no     yes     no
"""
ROWS = [line.rsplit(maxsplit=len(VIEWERS)) for line in TABLE.strip().splitlines()[1:]]


async def settled(people: list[Person], clients: list[Client]) -> None:
    """What was on its way to anybody has come: after it comes what they do themselves."""
    for person, client in zip(people, clients, strict=True):
        if client.closed is None:
            done = await person.do(
                "update-profile", avatar_url=f"https://a.example/{len(client.frames)}"
            )
            await client.reached(done["position"])


async def test_what_happens_is_told_to_whom_it_concerns(whole_api: Api) -> None:
    names = ("owner", "member", "contact", "former", "blocked", "stranger", "guest")
    people = [await whole_api.person(name) for name in names]
    owner, member, contact, former, blocked, stranger, guest = people
    room = await group(owner, member, former)
    pair = await direct(owner, contact)
    await befriend(owner, blocked)
    await owner.do("block-contact", user_id=blocked.user_id)
    await say(former, room, "I was here")
    await owner.do("remove-member", chat_id=room, user_id=former.user_id)
    positions: dict[str, int] = {}

    async def does(event: str, by: Person, command: str, /, **data: Any) -> Json:
        done = await by.do(command, **data)
        positions[event] = done["position"]
        return done

    viewers = [owner, member, contact, former, blocked, stranger]
    async with started(whole_api, *viewers) as clients:
        for where, chat_id, other in (("", room, member), (" direct", pair, contact)):
            sent = await does(
                f"message_sent{where}", owner, "send-message", chat_id=chat_id, content="a"
            )
            message = {"message_id": sent["message_id"]}
            await does(f"message_edited{where}", owner, "edit-message", **message, content="b")
            await does(f"reaction_added{where}", other, "add-reaction", **message, emoji="👍")
            if other is member:
                await does("reaction_removed", other, "remove-reaction", **message, emoji="👍")
                await does("messages_read", other, "mark-read", chat_id=chat_id)
            else:
                upto = {"chat_id": chat_id, "up_to_message_id": sent["message_id"]}
                await does("messages_delivered direct", other, "mark-delivered", **upto)
            await does(f"message_deleted{where}", owner, "delete-message", **message)
        # These append a message of the system after their event: its position is one more.
        chat = {"chat_id": room}
        of_guest = {**chat, "user_id": guest.user_id}
        await does("group_updated", owner, "update-group", **chat, avatar_url="https://a.example")
        await does("members_added", owner, "add-members", **chat, user_ids=[guest.user_id])
        await does("role_changed", owner, "change-role", **of_guest, role="admin")
        await does("member_left", guest, "leave-group", **chat)
        await owner.do("add-members", **chat, user_ids=[guest.user_id])
        await does("member_removed", owner, "remove-member", **of_guest)
        await does(
            "ownership_transferred", owner, "transfer-ownership", **chat, user_id=member.user_id
        )
        await member.do("transfer-ownership", **chat, user_id=owner.user_id)
        of_stranger = {"user_id": stranger.user_id}
        await does("contact_requested", owner, "request-contact", **of_stranger)
        await does("contact_accepted", stranger, "accept-contact", user_id=owner.user_id)
        await does("contact_blocked", owner, "block-contact", **of_stranger)
        await does("contact_unblocked", owner, "unblock-contact", **of_stranger)
        await does("contact_removed", owner, "remove-contact", **of_stranger)
        await owner.do("set-status", status="away")
        await does("profile_updated", owner, "update-profile", display_name="The owner")
        words = {"current_password": PASSWORD, "new_password": "another one"}
        await does("password_changed", owner, "change-password", **words)
        other_room = await group(owner, member)
        await does("group_deleted", owner, "delete-group", chat_id=other_room)
        await settled(viewers, clients)
        await does("account_deleted", owner, "delete-account", password="another one")
        assert await clients[0].close_code() == 4003
        await settled(viewers[1:], clients[1:])
        check(positions, clients)


def check(positions: dict[str, int], clients: list[Client]) -> None:
    kinds = {event["position"]: event["type"] for client in clients for event in client.events}
    assert positions.keys() == {row[0] for row in ROWS}
    found = {}
    for name, *_ in ROWS:
        kind = name.partition(" ")[0]
        # The command answers the position of its last event; it may have had several.
        some = range(positions[name], positions[name] - MOST_EVENTS, -1)
        position = next((one for one in some if kinds.get(one) == kind), None)
        found[name] = ["yes" if position in client.positions else "no" for client in clients]
    # Whether its own end still reaches the owner's socket before that is closed is open.
    found["account_deleted"][0] = "no"
    assert found == {name: seen for name, *seen in ROWS}
    for client in clients:
        assert client.positions == sorted(set(client.positions))
        assert not {event["type"] for event in client.events} & {"status_changed"}


async def test_of_a_chat_one_gets_nothing_from_leaving_to_joining_again(
    whole_api: Api, people: People
) -> None:
    ann, bob, eve = people
    chat_id = await group(ann, bob, eve)
    begin = (await say(ann, chat_id, "first"))[0]["position"] - 1
    async with started(whole_api, bob) as [live]:
        await ann.do("remove-member", chat_id=chat_id, user_id=bob.user_id)
        await say(ann, chat_id, "without bob")
        await eve.do("update-profile", display_name="Eve, said to who sees her")
        joined = await ann.do("add-members", chat_id=chat_id, user_ids=[bob.user_id])
        [again] = await say(ann, chat_id, "again")
        await live.event("message_sent", message_id=again["message_id"])
        await bob.see("/v1/unread", again["position"])
        async with connected(whole_api.url, token(bob)) as client:
            assert (await client.start(after=begin))["resumed"]
            await client.event("message_sent", message_id=again["message_id"])
            told = [(event["type"], event["data"].get("content")) for event in client.events]
        assert told == [
            ("message_sent", "first"),
            ("member_removed", None),
            # Who sees him now is told what he is called now.
            ("profile_updated", None),
            ("members_added", None),
            ("system_message_sent", "joined the group"),
            ("message_sent", "again"),
        ]
        mine = [event["position"] for event in live.events]
        assert mine == [one for one in client.positions if one in mine]
        assert joined["position"] in mine


async def test_a_catch_up_shows_the_past_as_it_is_now(whole_api: Api, people: People) -> None:
    ann, bob, eve = people
    chat_id = await group(ann, bob, eve)
    [kept, gone] = await say(ann, chat_id, "kept", "a secret")
    await say(eve, chat_id, "erased")
    begin = kept["position"] - 1
    await ann.do("edit-message", message_id=gone["message_id"], content="another secret")
    await bob.do("send-message", chat_id=chat_id, content="what?", reply_to_id=gone["message_id"])
    await ann.do("delete-message", message_id=gone["message_id"])
    await ann.do("update-profile", display_name="Ann of today", avatar_url="https://a.example/1")
    erased = await eve.do("delete-account", password=PASSWORD, erase_messages=True)
    await bob.see("/v1/unread", erased["position"])
    async with connected(whole_api.url, token(bob)) as client:
        ready = await client.start(after=begin)
        await client.event("account_deleted", user_id=eve.user_id)
        told = [event for event in client.events if event["position"] <= ready["position"]]
    text = re.sub(r"\s", " ", str(client.frames))
    assert "secret" not in text
    assert "'erased'" not in text
    assert "'eve'" not in text
    assert "'ann'" not in text
    sent = [event["data"] for event in told if event["type"] == "message_sent"]
    assert [one["content"] for one in sent] == ["kept", "[Deleted]", "[Deleted]", "what?"]
    senders = [one["sender"]["display_name"] for one in sent]
    assert senders == ["Ann of today", "Ann of today", "[Deleted User]", "bob"]
    assert sent[3]["reply_to"]["content"] == "[Message Deleted]"
    [edit] = [event["data"] for event in told if event["type"] == "message_edited"]
    assert (edit["content"], edit["metadata"]) == ("[Deleted]", {})
    [profile] = [event["data"] for event in told if event["type"] == "profile_updated"]
    assert profile == {
        "user_id": ann.user_id,
        "display_name": "Ann of today",
        "avatar_url": "https://a.example/1",
    }
