"""Queries about people: contacts, the other of a direct chat, and what a block or a deletion
leaves to see of somebody."""

from typing import Any

from tests.api.conversations import befriend, direct, group, say
from tests.api.served import PASSWORD, Api, Json, Person, problem

People = tuple[Person, Person, Person]


# Contacts


async def test_a_contact_is_shown_to_both_as_it_stands_for_each(people: People) -> None:
    ann, bob, _ = people
    asked = await ann.do("request-contact", user_id=bob.user_id)
    for one, other in ((ann, bob), (bob, ann)):
        [shown] = (await one.see("/v1/contacts", asked["position"]))["items"]
        assert shown == {
            "user": await one.see(f"/v1/users/{other.user_id}"),
            "status": "pending",
            "requested_by": ann.user_id,
            "created_at": shown["created_at"],
            "accepted_at": None,
        }
        assert shown["created_at"].endswith("Z")
    accepted = await bob.do("accept-contact", user_id=ann.user_id)
    [shown] = (await ann.see("/v1/contacts", accepted["position"]))["items"]
    assert shown["status"] == "accepted"
    assert shown["accepted_at"] >= shown["created_at"]


async def test_contacts_are_picked_by_status(whole_api: Api, people: People) -> None:
    ann, bob, eve = people
    joe = await whole_api.person("joe")
    await befriend(ann, bob)
    await ann.do("request-contact", user_id=eve.user_id)
    last = await ann.do("block-contact", user_id=joe.user_id)

    async def found(**parameters: Any) -> list[str]:
        answer = await ann.see("/v1/contacts", last["position"], **parameters)
        return [item["user"]["username"] for item in answer["items"]]

    assert await found() == ["joe", "eve", "bob"]
    assert await found(status="accepted") == ["bob"]
    assert await found(status="pending") == ["eve"]
    assert await found(status="blocked") == ["joe"]
    for status in ("", "Accepted", "declined"):
        refused = problem(await ann.look("/v1/contacts", status=status), 400, "invalid")
        assert refused["errors"][0]["field"] == "status"


async def test_contacts_page_by_cursor(whole_api: Api, people: People) -> None:
    ann, *_ = people
    last: Json = {}
    for n in range(5):
        friend = await whole_api.register(f"friend_{n}")
        last = await ann.do("request-contact", user_id=friend["user_id"])
    whole = await ann.see("/v1/contacts", last["position"])
    names = [item["user"]["username"] for item in whole["items"]]
    assert (names, whole["next_cursor"]) == ([f"friend_{n}" for n in (4, 3, 2, 1, 0)], None)
    paged: list[Json] = []
    cursor: dict[str, str] = {}
    while True:
        page = await ann.see("/v1/contacts", limit=2, **cursor)
        paged += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert paged == whole["items"]
    for broken in ("x", "", "W10"):
        problem(await ann.look("/v1/contacts", cursor=broken), 400, "invalid")


# Blocks


async def test_who_is_blocked_sees_the_blocker_offline_wherever_they_are_shown(
    people: People,
) -> None:
    ann, bob, eve = people
    chat_id = await direct(ann, bob)
    group_id = await group(ann, bob, eve)
    await say(ann, chat_id, "hi")
    await ann.do("set-status", status="online")
    blocked = await ann.do("block-contact", user_id=bob.user_id)

    async def views(viewer: Person) -> list[Json]:
        named = await viewer.see("/v1/users", blocked["position"], prefix="ann")
        found: list[Json] = named["items"]
        found.append(await viewer.see(f"/v1/users/{ann.user_id}", blocked["position"]))
        participants = f"/v1/chats/{group_id}/participants"
        members = (await viewer.see(participants, blocked["position"]))["items"]
        return found + [item["user"] for item in members if item["user"]["id"] == ann.user_id]

    for shown in await views(eve):
        assert (shown["status"], shown["last_seen"] is None) == ("online", False)
    [of_contact] = (await bob.see("/v1/contacts"))["items"]
    peer = (await bob.see(f"/v1/chats/{chat_id}"))["peer"]
    seen = [*await views(bob), of_contact["user"], peer]
    assert [(shown["status"], shown["last_seen"]) for shown in seen] == [("offline", None)] * 5
    assert of_contact["status"] == "accepted"
    assert (await ann.see("/v1/users/me"))["status"] == "online"
    back = await ann.do("unblock-contact", user_id=bob.user_id)
    assert (await bob.see(f"/v1/users/{ann.user_id}", back["position"]))["status"] == "online"


async def test_a_blocker_still_sees_whom_they_blocked(people: People) -> None:
    ann, bob, _ = people
    await bob.do("set-status", status="away")
    blocked = await ann.do("block-contact", user_id=bob.user_id)
    shown = await ann.see(f"/v1/users/{bob.user_id}", blocked["position"])
    assert shown["status"] == "away"
    [contact] = (await ann.see("/v1/contacts"))["items"]
    assert (contact["user"], contact["status"]) == (shown, "blocked")
    assert (await bob.see("/v1/contacts"))["items"] == []


# Direct chats


async def test_a_direct_chat_shows_each_the_other(people: People) -> None:
    ann, bob, _ = people
    chat_id = await direct(ann, bob)
    group_id = await group(ann, bob)
    [last] = await say(bob, chat_id, "hi")
    for one, other in ((ann, bob), (bob, ann)):
        shown = await one.see(f"/v1/chats/{chat_id}", last["position"])
        assert shown["peer"] == await one.see(f"/v1/users/{other.user_id}")
        assert (shown["type"], shown["name"], shown["my_role"]) == ("direct", None, "member")
        assert (await one.see(f"/v1/chats/{group_id}"))["peer"] is None
        listed = {chat["id"]: chat for chat in (await one.see("/v1/chats"))["items"]}
        assert listed[chat_id] == shown


# Deleted accounts


async def test_a_deleted_account_is_shown_without_a_trace_of_who_it_was(people: People) -> None:
    ann, bob, _ = people
    await bob.do("update-profile", display_name="Bob", avatar_url="https://example.org/b.png")
    chat_id = await direct(ann, bob)
    [sent] = await say(bob, chat_id, "bye")
    deleted = await bob.do("delete-account", password=PASSWORD)
    shown = await ann.see(f"/v1/users/{bob.user_id}", deleted["position"])
    assert shown == {
        "id": bob.user_id,
        "username": f"deleted_{bob.user_id.replace('-', '')}",
        "display_name": "[Deleted User]",
        "avatar_url": None,
        "status": "offline",
        "last_seen": None,
        "created_at": shown["created_at"],
    }
    chat = await ann.see(f"/v1/chats/{chat_id}")
    assert chat["peer"] == shown
    assert chat["last_message"]["id"] == sent["message_id"]
    assert chat["last_message"]["sender"] == {
        "id": bob.user_id,
        "display_name": "[Deleted User]",
    }
    assert (await ann.see("/v1/contacts"))["items"] == []


async def test_a_deleted_account_is_found_by_no_prefix(people: People) -> None:
    ann, bob, eve = people
    await eve.do("update-profile", display_name="[Deleted")
    deleted = await bob.do("delete-account", password=PASSWORD)

    async def found(prefix: str) -> list[str]:
        answer = await ann.see("/v1/users", deleted["position"], prefix=prefix)
        return [user["username"] for user in answer["items"]]

    assert await found("bob") == await found("deleted_") == []
    assert await found("[deleted") == ["eve"]
    assert await found("") == ["ann", "eve"]


async def test_who_bears_a_prefix_in_both_names_is_found_once(people: People) -> None:
    ann, bob, eve = people
    await eve.do("update-profile", display_name="Anna")
    done = await ann.do("update-profile", display_name="Annie")
    shown = await bob.see("/v1/users", done["position"], prefix="ann")
    assert [user["username"] for user in shown["items"]] == ["ann", "eve"]
    limited = await bob.see("/v1/users", prefix="ann", limit=1)
    assert [user["username"] for user in limited["items"]] == ["ann"]
