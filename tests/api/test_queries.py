"""Queries: what they show, to whom, and at which position."""

import asyncio
import time
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.api.conversations import group, say
from tests.api.served import (
    READ_WAIT_SECONDS,
    Api,
    Json,
    Person,
    bearer,
    good,
    problem,
    serving,
)
from tests.infra.daemons import projecting

MESSAGE_FIELDS = {
    "id",
    "chat_id",
    "seq",
    "position",
    "sender",
    "content",
    "content_type",
    "metadata",
    "reply_to",
    "is_edited",
    "edited_at",
    "is_deleted",
    "deleted_at",
    "created_at",
    "reactions",
    "attachments",
}
CHAT_FIELDS = {
    "id",
    "type",
    "name",
    "slug",
    "avatar_url",
    "owner_id",
    "created_at",
    "updated_at",
    "last_message_at",
    "my_role",
    "unread_count",
    "last_message",
    "peer",
}
QUERIES = (
    "/v1/users/me",
    "/v1/users/{id}",
    "/v1/users",
    "/v1/chats",
    "/v1/chats/{id}",
    "/v1/chats/{id}/participants",
    "/v1/chats/{id}/messages",
    "/v1/messages/{id}",
    "/v1/messages/{id}/delivery",
    "/v1/messages/{id}/reactions",
    "/v1/contacts",
    "/v1/unread",
    "/v1/state",
)


# Users


async def test_a_user_is_shown_to_everybody_as_the_contract_says(whole_api: Api) -> None:
    ann = await whole_api.person("ann", display_name="Ann Other")
    bob = await whole_api.person("bob")
    done = await ann.do("update-profile", avatar_url="https://example.org/a.png")
    shown = await ann.see("/v1/users/me", done["position"])
    assert shown == {
        "id": ann.user_id,
        "username": "ann",
        "display_name": "Ann Other",
        "avatar_url": "https://example.org/a.png",
        "status": "offline",
        "last_seen": shown["last_seen"],
        "created_at": shown["created_at"],
    }
    assert shown["created_at"].endswith("Z")
    assert await bob.see(f"/v1/users/{ann.user_id}") == shown


async def test_users_are_found_by_prefix_of_either_name_in_any_case(whole_api: Api) -> None:
    for username, display_name in (
        ("Anna", "Queen"),
        ("anton", "King"),
        ("zoe", "Anybody"),
        ("a_n", "Under"),
        ("hundred", "100%"),
    ):
        await whole_api.register(username, display_name=display_name)
    me = await whole_api.person("searcher")

    async def found(prefix: str, **more: Any) -> list[str]:
        answer = await me.see("/v1/users", 6, prefix=prefix, **more)
        return [user["username"] for user in answer["items"]]

    assert await found("AN") == ["Anna", "anton", "zoe"]
    assert await found("an", limit=2) == ["Anna", "anton"]
    assert await found("a_") == ["a_n"]
    assert await found("100%") == ["hundred"]
    assert await found("%") == await found("\\") == await found("nobody") == []
    assert len(await found("")) == 6


# Chats


async def test_a_chat_is_shown_to_its_participants_only(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, eve = people
    chat_id = await group(ann, bob, slug="friends")
    [*_, last] = await say(ann, chat_id, "one", "two")
    shown = await bob.see(f"/v1/chats/{chat_id}", last["position"])
    assert set(shown) == CHAT_FIELDS
    assert (shown["name"], shown["slug"], shown["type"]) == ("Friends", "friends", "group")
    assert (shown["owner_id"], shown["my_role"], shown["unread_count"]) == (
        ann.user_id,
        "member",
        2,
    )
    assert shown["last_message"]["content"] == "two"
    assert shown["last_message_at"] == shown["last_message"]["created_at"]
    assert (await bob.see("/v1/chats"))["items"] == [shown]
    problem(await eve.look(f"/v1/chats/{chat_id}"), 404, "not-found")
    assert await eve.see("/v1/chats") == {"items": [], "next_cursor": None}


async def test_chats_come_last_message_first_and_page_by_cursor(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, _ = people
    chats = [await group(ann, bob) for _ in range(7)]
    for n in (3, 0):
        await say(bob, chats[n], "hi")
    [last] = await say(bob, chats[5], "hi")
    expected = [chats[n] for n in (5, 0, 3, 6, 4, 2, 1)]
    whole = await ann.see("/v1/chats", last["position"])
    assert [chat["id"] for chat in whole["items"]] == expected
    assert whole["next_cursor"] is None
    paged: list[Json] = []
    cursor: dict[str, str] = {}
    while True:
        page = await ann.see("/v1/chats", limit=3, **cursor)
        paged += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert paged == whole["items"]
    for broken in ("x", "", "\u00fc", whole["items"][0]["id"], "W10", "x" * 5_000):
        problem(await ann.look("/v1/chats", cursor=broken), 400, "invalid")


async def test_participants_are_the_active_ones(people: tuple[Person, Person, Person]) -> None:
    ann, bob, eve = people
    chat_id = await group(ann, bob, eve)
    left = await bob.do("leave-group", chat_id=chat_id)
    shown = await ann.see(f"/v1/chats/{chat_id}/participants", left["position"])
    assert {item["user"]["id"]: item["role"] for item in shown["items"]} == {
        ann.user_id: "owner",
        eve.user_id: "member",
    }
    assert set(shown["items"][0]) == {"user", "role", "joined_at"}
    assert shown["items"][0]["user"] == await ann.see(f"/v1/users/{ann.user_id}")
    problem(await bob.look(f"/v1/chats/{chat_id}/participants"), 404, "not-found")


async def test_who_left_sees_the_chat_no_more(people: tuple[Person, Person, Person]) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [first] = await say(ann, chat_id, "secret")
    position = (await bob.do("leave-group", chat_id=chat_id))["position"]
    for path in (
        f"/v1/chats/{chat_id}",
        f"/v1/chats/{chat_id}/participants",
        f"/v1/chats/{chat_id}/messages",
        f"/v1/messages/{first['message_id']}",
        f"/v1/messages/{first['message_id']}/delivery",
        f"/v1/messages/{first['message_id']}/reactions",
    ):
        problem(await bob.look(path, position), 404, "not-found")
    assert (await bob.see("/v1/chats"))["items"] == []
    assert (await bob.see("/v1/unread"))["messages"] == 0


# Messages


async def test_a_message_is_shown_as_the_contract_says(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [question] = await say(bob, chat_id, "what?")
    formatting = {"bold": [[0, 4]]}
    sent = await ann.do(
        "send-message",
        chat_id=chat_id,
        content="that",
        reply_to_id=question["message_id"],
        metadata={"formatting": formatting},
    )
    mine = await ann.see(f"/v1/messages/{sent['message_id']}", sent["position"])
    assert set(mine) == MESSAGE_FIELDS | {"delivery"}
    assert mine["delivery"] == {"recipients": 1, "delivered": 0, "read": 0}
    assert (mine["seq"], mine["position"]) == (2, sent["position"])
    assert mine["created_at"] == sent["created_at"]
    assert mine["sender"] == {"id": ann.user_id, "display_name": "ann"}
    assert mine["metadata"] == {"formatting": formatting}
    assert mine["reply_to"] == {
        "id": question["message_id"],
        "sender": {"id": bob.user_id, "display_name": "bob"},
        "content": "what?",
    }
    theirs = await bob.see(f"/v1/messages/{sent['message_id']}")
    assert theirs == {name: value for name, value in mine.items() if name != "delivery"}


async def test_a_system_message_has_no_sender(people: tuple[Person, Person, Person]) -> None:
    ann, bob, eve = people
    chat_id = await group(ann, bob)
    added = await ann.do("add-members", chat_id=chat_id, user_ids=[eve.user_id])
    shown = await ann.see(f"/v1/chats/{chat_id}/messages", added["position"])
    [message] = shown["items"]
    assert (message["sender"], message["content_type"]) == (None, "system")
    assert message["metadata"]["system"]["user_ids"] == [eve.user_id]
    assert "delivery" not in message


async def test_history_pages_both_ways(people: tuple[Person, Person, Person]) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [*_, last] = await say(ann, chat_id, *(f"{n}" for n in range(1, 8)))
    path = f"/v1/chats/{chat_id}/messages"

    async def page(**parameters: Any) -> tuple[list[int], bool]:
        answer = await bob.see(path, last["position"], **parameters)
        return [message["seq"] for message in answer["items"]], answer["has_more"]

    assert await page() == ([7, 6, 5, 4, 3, 2, 1], False)
    assert await page(limit=3) == ([7, 6, 5], True)
    assert await page(limit=3, before=5) == ([4, 3, 2], True)
    assert await page(limit=3, before=4) == ([3, 2, 1], False)
    assert await page(before=1) == ([], False)
    assert await page(limit=3, after=0) == ([1, 2, 3], True)
    assert await page(limit=3, after=4) == ([5, 6, 7], False)
    assert await page(after=7) == ([], False)
    problem(await bob.look(path, before=5, after=1), 400, "invalid")


async def test_delivery_is_told_to_the_sender_only(people: tuple[Person, Person, Person]) -> None:
    ann, bob, eve = people
    chat_id = await group(ann, bob, eve)
    [sent] = await say(ann, chat_id, "hi")
    path = f"/v1/messages/{sent['message_id']}/delivery"
    await bob.do("mark-delivered", chat_id=chat_id, up_to_message_id=sent["message_id"])
    read = await eve.do("mark-read", chat_id=chat_id)
    shown = await ann.see(path, read["position"])
    assert (shown["recipients"], shown["delivered"], shown["read"]) == (2, 2, 1)
    assert {item["user_id"]: item["status"] for item in shown["items"]} == {
        bob.user_id: "delivered",
        eve.user_id: "read",
    }
    [message] = (await ann.see(f"/v1/chats/{chat_id}/messages"))["items"]
    assert message["delivery"] == {"recipients": 2, "delivered": 2, "read": 1}
    problem(await bob.look(path), 403, "forbidden")


async def test_unread_counts_until_it_is_read(people: tuple[Person, Person, Person]) -> None:
    ann, bob, _ = people
    one, two = await group(ann, bob), await group(ann, bob)
    await say(ann, one, "a", "b")
    [last] = await say(ann, two, "c")
    shown = await bob.see("/v1/unread", last["position"])
    assert (shown["chats"], shown["messages"]) == (2, 3)
    assert {item["chat_id"]: item["count"] for item in shown["items"]} == {one: 2, two: 1}
    assert await ann.see("/v1/unread") == {"chats": 0, "messages": 0, "items": []}
    read = await bob.do("mark-read", chat_id=one)
    shown = await bob.see("/v1/unread", read["position"])
    assert shown == {"chats": 1, "messages": 1, "items": [{"chat_id": two, "count": 1}]}


# Reading one's writes


async def test_every_query_reads_the_caller_s_own_writes(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    for n in range(20):
        [sent] = await say(ann, chat_id, f"{n}")
        response = await ann.look(f"/v1/messages/{sent['message_id']}", sent["position"])
        assert good(response)["content"] == f"{n}"
        assert int(response.headers["log-position"]) >= sent["position"]
        unread = await bob.see("/v1/unread", sent["position"])
        assert unread["messages"] == n + 1


async def test_the_position_may_come_as_a_parameter(
    people: tuple[Person, Person, Person],
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [sent] = await say(ann, chat_id, "hi")
    response = await bob.client.get("/v1/unread", params={"min_position": sent["position"]})
    assert good(response)["messages"] == 1


async def test_read_models_that_stay_behind_are_told_so_in_time(
    database_url: str, nats_url: str
) -> None:
    async with serving(database_url, nats_url, read_wait_seconds=0.3) as api:
        ann = await api.person("ann")
        began = time.monotonic()
        response = await ann.look("/v1/users/me", 1)
        problem(response, 503, "read-model-behind")
        assert response.headers["retry-after"]
        # By default it would wait for longer.
        assert 0.25 <= time.monotonic() - began < READ_WAIT_SECONDS


@pytest.mark.parametrize("position", [1, 0], ids=["by position", "of oneself"])
async def test_a_waiting_read_is_answered_as_soon_as_it_can_be(
    database_url: str, nats_url: str, position: int
) -> None:
    async with serving(database_url, nats_url) as api:
        ann = await api.person("ann")
        waiting = asyncio.create_task(ann.look("/v1/users/me", position))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        async with projecting(database_url, nats_url):
            assert good(await waiting)["username"] == "ann"


async def test_a_position_that_the_log_has_not_is_invalid(whole_api: Api) -> None:
    ann = await whole_api.person("ann")
    for position in ("2", "9223372036854775807", "9223372036854775808", "-1", "1.0", "x", "", "+1"):
        headers = {"Min-Log-Position": position}
        by_header = await ann.client.get("/v1/users/me", headers=headers)
        problem(by_header, 400, "invalid")
        by_parameter = await ann.client.get("/v1/users/me", params={"min_position": position})
        problem(by_parameter, 400, "invalid")


# Everything wrong


async def test_every_query_needs_a_token(api: Api) -> None:
    for query in QUERIES:
        path = query.format(id=uuid4())
        problem(await api.client.get(path), 401, "unauthenticated")
        headers = bearer({"access_token": "broken"})
        problem(await api.client.get(path, headers=headers), 401, "unauthenticated")


async def test_ids_of_nothing_and_no_ids_are_not_found(whole_api: Api) -> None:
    ann = await whole_api.person("ann")
    for query in QUERIES:
        for id in (str(uuid4()), ann.user_id.upper(), "x", "%00", "%ff", "a b"):
            if "{id}" in query:
                problem(await ann.look(query.format(id=id)), 404, "not-found")


async def test_limits_out_of_range_are_invalid(people: tuple[Person, Person, Person]) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    for path, beyond in (
        ("/v1/users", "101"),
        ("/v1/chats", "101"),
        (f"/v1/chats/{chat_id}/messages", "101"),
        ("/v1/contacts", "501"),
    ):
        for limit in ("0", beyond, "-1", "x", "1.5", "", "9" * 5_000, "\u0661"):
            refused = problem(await ann.look(path, limit=limit), 400, "invalid")
            assert refused["errors"][0]["field"] == "limit"
    for name in ("before", "after"):
        for seq in ("-1", "x", str(2**31)):
            response = await ann.look(f"/v1/chats/{chat_id}/messages", **{name: seq})
            problem(response, 400, "invalid")


PARAMETERS = st.dictionaries(
    st.sampled_from(
        ["limit", "cursor", "before", "after", "prefix", "status", "min_position", "other"]
    ),
    st.text(max_size=12) | st.integers().map(str),
    max_size=3,
)


@pytest.mark.fuzz
@given(query=st.sampled_from(QUERIES), parameters=PARAMETERS, raw=st.binary(max_size=12))
async def test_no_parameter_breaks_a_query(
    curious: tuple[Person, str], query: str, parameters: dict[str, str], raw: bytes
) -> None:
    person, chat_id = curious
    path = query.format(id=chat_id)
    escaped = "".join(f"%{byte:02x}" for byte in raw)
    for response in (
        await person.client.get(path, params=_sendable(parameters)),
        await person.client.get(f"{path}?{escaped}"),
    ):
        assert response.status_code in (200, 400, 404), response.text
        if response.status_code != 200:
            problem(response, response.status_code, response.json()["code"])


@pytest.fixture
async def curious(people: tuple[Person, Person, Person]) -> tuple[Person, str]:
    ann, bob, _ = people
    return ann, await group(ann, bob)


def _sendable(parameters: dict[str, str]) -> dict[str, str]:
    return {name: value.encode("utf-8", "replace").decode() for name, value in parameters.items()}
