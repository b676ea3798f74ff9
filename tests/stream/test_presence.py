"""What is told and not logged, or logged for many: typing, who is online, who has what."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any, LiteralString
from uuid import uuid4

import pytest

from api.stream import presence, typing
from domain.ids import UserId
from infra import clock
from infra.tokens import Caller
from tests.api.conversations import befriend, direct, group, say
from tests.api.served import PASSWORD, Api, Json, Person, good, serving, serving_all
from tests.infra.daemons import connected as database
from tests.stream.client import WAIT_SECONDS, Client, connected
from tests.stream.started import started, token

People = tuple[Person, Person, Person]

# What has not come by then, and is on no way, does not come.
QUIET_SECONDS = 0.8

DELIVERIES: LiteralString = """
    SELECT json_array_length(data -> 'marks')
    FROM event_log
    WHERE type = 'deliveries_recorded'
"""

LEASES: LiteralString = """
    SELECT count(*)
    FROM gateway_users
    WHERE user_id = %s
"""

DEAD: tuple[LiteralString, ...] = (
    """
    INSERT INTO gateways (id, seen_at)
    VALUES (%(gateway)s, clock_timestamp() - interval '1 hour')
    """,
    """
    INSERT INTO gateway_users (user_id, gateway_id)
    VALUES (%(user)s, %(gateway)s)
    """,
)


def of(client: Client, op: str, person: Person) -> list[Json]:
    return [one for one in client.frames if one["op"] == op and one["user_id"] == person.user_id]


async def told(client: Client, op: str, person: Person, **fields: Any) -> Json:
    wanted = {"op": op, "user_id": person.user_id, **fields}
    return await client.wait(lambda one: wanted.items() <= one.items())


# --------------------------------------------------------------------------------- typing


async def position(api: Api) -> int:
    """The log's head."""
    head: int = good(await api.client.get("/v1/status"))["position"]
    return head


async def heard(*clients: Client) -> None:
    """The server has taken in whatever they said by now."""
    for client in clients:
        seen = len(client.frames)
        await client.say("ping")
        await client.wait(lambda one: one["op"] == "pong", since=seen)


async def test_typing_is_told_to_the_other_members_on_every_process_and_kept_nowhere(
    database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_all(database_url, nats_url) as api, serving(database_url, nats_url) as two:
        ann, bob, cat, eve = [await api.person(name) for name in ("ann", "bob", "cat", "eve")]
        chat_id = await group(ann, bob, cat)
        async with started(api, ann, ann, bob, eve) as [a, a_too, b, e], started(two, cat) as [c]:
            head = await position(api)
            await e.say("typing", chat_id=chat_id)  # a stranger to the chat
            await e.say("typing", chat_id=str(uuid4()))
            with monkeypatch.context() as patch:
                patch.setattr(typing, "INTERVAL_SECONDS", WAIT_SECONDS)
                for _ in range(3):
                    await a.say("typing", chat_id=chat_id)
                await heard(a)
            expected = {"op": "typing", "chat_id": chat_id, "user_id": ann.user_id}
            assert await told(b, "typing", ann) == expected
            assert await told(c, "typing", ann) == expected
            await asyncio.sleep(typing.INTERVAL_SECONDS)
            await a.say("typing", chat_id=chat_id)
            await heard(a, e)
            await b.say("typing", chat_id=chat_id)
            # What one process tells comes in its order: all of Ann's is there when this is.
            assert await told(c, "typing", bob)
            await told(a, "typing", bob)
            await told(a_too, "typing", bob)
            await heard(b)
            assert [len(of(one, "typing", ann)) for one in (a, a_too, b, c, e)] == [0, 0, 2, 2, 0]
            assert [len(of(one, "typing", eve)) for one in (a, a_too, b, c, e)] == [0] * 5
            await asyncio.sleep(0.3)
            logged = await position(api)
            changes = [one for one in b.frames if one["op"] == "presence"]
            assert logged - head <= len(changes) + 4, "nothing but who came online"


async def test_in_a_direct_chat_only_contacts_who_do_not_block_each_other_are_told(
    whole_api: Api, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob, _ = people
    monkeypatch.setattr(typing, "INTERVAL_SECONDS", 0.05)
    chat_id = await direct(ann, bob)
    async with started(whole_api, ann, bob) as [a, b]:

        async def reaches(by: Client, other: Client, person: Person) -> bool:
            await asyncio.sleep(typing.INTERVAL_SECONDS)
            before = len(of(other, "typing", person))
            await by.say("typing", chat_id=chat_id)
            # It is told at once, on one process: before this is answered, or not at all.
            await heard(by)
            await heard(other)
            return len(of(other, "typing", person)) > before

        assert await reaches(a, b, ann)
        blocked = await bob.do("block-contact", user_id=ann.user_id)
        await b.reached(blocked["position"])
        assert not await reaches(a, b, ann)
        assert not await reaches(b, a, bob)
        unblocked = await bob.do("unblock-contact", user_id=ann.user_id)
        await b.reached(unblocked["position"])
        assert await reaches(a, b, ann)
        removed = await ann.do("remove-contact", user_id=bob.user_id)
        await b.reached(removed["position"])
        assert not await reaches(a, b, ann)


# ------------------------------------------------------------------------------- presence


async def test_who_is_online_is_told_to_contacts_and_members_and_hidden_by_a_block(
    database_url: str, nats_url: str
) -> None:
    async with serving_all(database_url, nats_url, presence_grace_seconds=0.3) as api:
        names = ("ann", "bob", "cat", "dan", "eve")
        ann, bob, cat, dan, eve = [await api.person(name) for name in names]
        await befriend(ann, bob)
        await group(ann, cat)
        await befriend(ann, dan)
        await ann.do("block-contact", user_id=dan.user_id)
        async with started(api, bob, cat, dan, eve) as [b, c, d, e]:
            async with connected(api.url, token(ann)) as a:
                for client in (b, c):
                    online = await told(client, "presence", ann, status="online")
                    assert set(online) == {"op", "user_id", "status", "last_seen"}
                assert online["last_seen"]
                async with connected(api.url, token(ann)):
                    pass
                await ann.do("set-status", status="away")
                await told(b, "presence", ann, status="away")
                await a.start()
            seen = await told(b, "presence", ann, status="offline")
            await told(c, "presence", ann, status="offline")
            shown = await bob.see(f"/v1/users/{ann.user_id}", await position(api))
            assert (shown["status"], shown["last_seen"]) == ("offline", seen["last_seen"])
            # Closing one of two connections changed nothing.
            changes = [one["status"] for one in of(b, "presence", ann)]
            assert changes == ["online", "away", "offline"]
            for client in (d, e, a):
                assert of(client, "presence", ann) == []
            assert all("position" not in one for one in b.frames if one["op"] == "presence")


async def test_who_comes_back_within_the_grace_is_never_seen_to_go(
    database_url: str, nats_url: str
) -> None:
    # Longer than any machine takes to connect.
    async with serving_all(database_url, nats_url, presence_grace_seconds=60) as api:
        ann, bob = [await api.person(name) for name in ("ann", "bob")]
        await befriend(ann, bob)
        async with started(api, bob) as [b]:
            for _ in range(3):
                async with connected(api.url, token(ann)) as a:
                    await a.start()
                    await told(b, "presence", ann, status="online")
            async with connected(api.url, token(ann)) as a:
                await asyncio.sleep(QUIET_SECONDS)
                assert [one["status"] for one in of(b, "presence", ann)] == ["online"]


async def test_a_process_that_died_leaves_nobody_online(
    database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "BEAT_SECONDS", 0.2)
    async with serving_all(database_url, nats_url, presence_grace_seconds=0.2) as api:
        ann, bob, cat = [await api.person(name) for name in ("ann", "bob", "cat")]
        await befriend(ann, bob)
        await befriend(bob, cat)
        await ann.do("set-status", status="online")
        async with started(api, bob) as [b], started(api, cat):
            await told(b, "presence", cat, status="online")
            async with database(database_url) as connection:
                gateway = str(uuid4())
                for user in (ann, cat):
                    for statement in DEAD if user is ann else DEAD[1:]:
                        values = {"gateway": gateway, "user": user.user_id}
                        await connection.execute(statement, values)
                await told(b, "presence", ann, status="offline")
                async with asyncio.timeout(WAIT_SECONDS):
                    while (await (await connection.execute(LEASES, (ann.user_id,))).fetchone()) != (
                        0,
                    ):
                        await asyncio.sleep(0.05)
            assert [one["status"] for one in of(b, "presence", cat)] == ["online"], "lives here"


def test_a_process_that_died_is_found_out_within_thirty_seconds() -> None:
    assert presence.LEASE_SECONDS + 2 * presence.BEAT_SECONDS + presence.STEP_TIMEOUT_SECONDS < 30
    assert presence.BEAT_SECONDS + presence.STEP_TIMEOUT_SECONDS < presence.LEASE_SECONDS


# ------------------------------------------------------------------------------- receipts

MEMBERS = 300
CONNECTED = 40
FLUSH_SECONDS = 1


async def test_a_big_group_with_many_online_writes_one_event_a_flush(
    database_url: str, nats_url: str
) -> None:
    async with serving_all(database_url, nats_url, receipt_flush_ms=1_000 * FLUSH_SECONDS) as api:
        owner = await api.person("owner")
        ids = await registered(api, MEMBERS - 1)
        chat = await owner.do("create-group", name="Everybody", member_ids=ids)
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(connected(api.url, await made_token(api, user_id)))
                for user_id in ids[:CONNECTED]
            ]
            [mine] = await stack.enter_async_context(started(api, owner))
            await asyncio.gather(*(client.start() for client in clients))
            sent = await owner.do("send-message", chat_id=chat["chat_id"], content="Hello")
            for client in clients:
                await client.event("message_sent", message_id=sent["message_id"])
            began = time.monotonic()
            for client in clients:
                await client.say("received", position=sent["position"])
            async with asyncio.timeout(WAIT_SECONDS):
                while len(marked := marks(mine)) < CONNECTED:
                    await asyncio.sleep(0.05)
            assert marked == dict.fromkeys(ids[:CONNECTED], sent["position"])
            # Those whose message it is not are told that there was something.
            theirs = await clients[0].event("messages_delivered")
            assert theirs["data"] == {"chat_id": chat["chat_id"], "marks": []}
            async with database(database_url) as connection:
                rows = await (await connection.execute(DELIVERIES)).fetchall()
            assert sum(count for (count,) in rows) == CONNECTED, "each once"
            flushes = (time.monotonic() - began) / FLUSH_SECONDS
            assert len(rows) <= 2 + flushes, "by the flush, not by the user"
            last = mine.positions[-1]
            delivery = await owner.see(f"/v1/messages/{sent['message_id']}/delivery", last)
            assert (delivery["recipients"], delivery["delivered"]) == (MEMBERS - 1, CONNECTED)


def marks(client: Client) -> dict[str, int]:
    return {
        mark["user_id"]: mark["delivered_up_to"]
        for event in client.events
        if event["type"] == "messages_delivered"
        for mark in event["data"]["marks"]
    }


async def registered(api: Api, count: int) -> list[str]:
    commands = [
        {"name": "register-user", "data": {"username": f"member_{n}", "password": PASSWORD}}
        for n in range(count)
    ]
    answer = good(await api.client.post("/v1/commands", json={"commands": commands}))
    return [result["user_id"] for result in answer["results"]]


async def made_token(api: Api, user_id: Any) -> str:
    """Without a login; the session is there: a process that is behind looks it up."""
    now = int(clock.now().timestamp())
    session_id = (await api.parts.sessions.open(user_id, None)).session_id
    return api.parts.tokens.access(Caller(user_id, session_id, now + 600), issued_at=now)


async def test_who_connects_gets_what_was_pending_and_says_so(
    whole_api: Api, people: People
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    sent = await say(ann, chat_id, "a", "b", "c")
    async with started(whole_api, ann, bob) as [a, b]:
        await b.say("received", position=sent[1]["position"])
        first = await a.event("messages_delivered")
        mark = {"user_id": bob.user_id, "delivered_up_to": sent[1]["position"], "read_up_to": None}
        assert first["data"] == {"chat_id": chat_id, "marks": [mark]}
        # More than there is counts as all there is; said twice it is recorded once.
        seen = len(a.frames)
        for _ in range(2):
            await b.say("received", position=2**60)
        again = await a.event("messages_delivered", since=seen)
        assert again["data"]["marks"] == [mark | {"delivered_up_to": sent[2]["position"]}]
        delivered = await ann.see(
            f"/v1/messages/{sent[2]['message_id']}/delivery", again["position"]
        )
        assert [one["status"] for one in delivered["items"]] == ["delivered"]
        unread = await bob.see("/v1/unread", again["position"])
        assert unread["messages"] == 3, "to have is not to have read"
        await b.say("received", position=2**60)
        await asyncio.sleep(QUIET_SECONDS)
        assert len([one for one in a.events if one["type"] == "messages_delivered"]) == 2


async def test_who_was_removed_meanwhile_has_what_a_catch_up_brings_and_nothing_without_one(
    whole_api: Api, people: People
) -> None:
    ann, bob, carl = people
    chat_id = await group(ann, bob, carl)
    [sent] = await say(ann, chat_id, "a")
    removed = await ann.do("remove-member", chat_id=chat_id, user_id=bob.user_id)
    await ann.see("/v1/state", removed["position"])
    async with connected(whole_api.url, token(bob)) as b, started(whole_api, ann) as [a]:
        await b.start()
        await b.say("received", position=removed["position"])
        await asyncio.sleep(QUIET_SECONDS)
        assert await status_of(bob, ann, sent, removed["position"]) == "pending"
        assert (await b.start(after=sent["position"] - 1, epoch=1))["resumed"]
        await b.event("member_removed")
        await b.say("received", position=removed["position"])
        told = await a.event("messages_delivered")
        assert await status_of(bob, ann, sent, told["position"]) == "delivered"


async def test_who_was_removed_before_it_was_routed_has_nothing_of_what_was_sent_before(
    whole_api: Api, people: People
) -> None:
    ann, bob, carl = people
    chat_id = await group(ann, bob, carl)
    async with started(whole_api, carl), connected(whole_api.url, token(bob)) as b:
        gateway = whole_api.live._services.gateway
        async with gateway.turn:
            [sent] = await say(ann, chat_id, "a")
            removed = await ann.do("remove-member", chat_id=chat_id, user_id=bob.user_id)
            starting = asyncio.create_task(b.start())
            while UserId(bob.user_id) not in gateway._users:
                await asyncio.sleep(0.01)
        assert (await starting)["position"] >= removed["position"]
        await b.say("received", position=removed["position"])
        await asyncio.sleep(QUIET_SECONDS)
        assert await status_of(bob, ann, sent, removed["position"]) == "pending"


async def status_of(recipient: Person, seer: Person, sent: Json, position: int) -> str:
    delivery = await seer.see(f"/v1/messages/{sent['message_id']}/delivery", position)
    [status] = [one["status"] for one in delivery["items"] if one["user_id"] == recipient.user_id]
    return str(status)
