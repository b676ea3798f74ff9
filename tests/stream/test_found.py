"""What the law found, each as the shortest history that shows it."""

import json
import time
from uuid import uuid4

import pytest

from api.queries.whole import SOON_SECONDS
from projections import PROJECTIONS
from tests.api.conversations import group, say
from tests.api.served import Api, Person, good, serving, serving_all
from tests.infra.daemons import projected, projecting, written
from tests.stream.client import connected
from tests.stream.started import started

People = tuple[Person, Person, Person]


async def test_a_name_that_changed_while_nobody_listened_is_the_new_one(
    database_url: str, nats_url: str
) -> None:
    async with serving_all(database_url, nats_url) as api, serving(database_url, nats_url) as other:
        ann, bob, eve = [await api.person(name) for name in ("ann", "bob", "eve")]
        chat_id = await group(ann, bob)
        names = []
        async with connected(other.url, eve.session["access_token"]) as stranger:
            await stranger.start()
            for name in ("Ann", "Anna"):
                await ann.do("update-profile", display_name=name)
                # It has gone by in this process, where nobody is whom it concerns.
                await stranger.do("update-profile", display_name=name)
                await stranger.event("profile_updated", display_name=name)
                async with connected(other.url, bob.session["access_token"]) as client:
                    await client.start()
                    await ann.do("send-message", chat_id=chat_id, content=name)
                    sent = await client.event("message_sent", content=name)
                names.append(sent["data"]["sender"]["display_name"])
    assert names == ["Ann", "Anna"]


@pytest.mark.parametrize(
    ("kind", "version"),
    [("event_of_the_future", 1), ("message_sent", 99), ("message_sent", 1), ("members_added", 1)],
)
async def test_an_event_that_can_not_be_read_ends_no_stream(
    whole_api: Api, people: People, kind: str, version: int
) -> None:
    """Newer code wrote it, or it is broken: the read models that need it wait, nobody else."""
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    async with started(whole_api, bob) as [b]:
        unread = json.dumps({"chat_id": chat_id, "sender_id": ann.user_id}).encode()
        outcome = await whole_api.parts.appender.append(
            written(f"chat-{uuid4()}", kind, unread, version)
        )
        [sent] = await say(ann, chat_id, "hello")
        assert (await b.event("message_sent"))["position"] == sent["position"]
        ready = await b.start(after=outcome.position - 1, epoch=1)
        assert ready["resumed"]
        again = await b.event("message_sent", since=b.frames.index(ready))
        assert again["position"] == sent["position"]


async def test_a_chat_that_a_new_member_fetches_is_as_of_one_position(
    database_url: str, nats_url: str
) -> None:
    """Else what the position says is still to come, and is there already, would count twice."""
    most = [one for one in PROJECTIONS if one.name not in ("unread", "users")]
    rest = [one for one in PROJECTIONS if one not in most]
    async with serving(database_url, nats_url, read_wait_seconds=0.5) as api:
        async with projecting(database_url, nats_url):
            ann, bob, eve = [await api.person(name) for name in ("ann", "bob", "eve")]
            chat_id = await group(ann, bob)
            [first] = await say(ann, chat_id, "hi")
            await projected(database_url)
            await bob.see(f"/v1/chats/{chat_id}", first["position"])
        async with projecting(database_url, nats_url, most):
            added = await ann.do("add-members", chat_id=chat_id, user_ids=[eve.user_id])
            [sent] = await say(ann, chat_id, "hello")
            await projected(database_url, [one.name for one in most])
            began = time.monotonic()
            for path in (f"/v1/chats/{chat_id}", f"/v1/chats/{chat_id}/participants"):
                stuck = await bob.look(path)
                good(stuck)  # late, and no further than what stands still
                assert int(stuck.headers["log-position"]) < added["position"]
            assert time.monotonic() - began >= 2 * SOON_SECONDS
        async with projecting(database_url, nats_url, rest):
            await projected(database_url)
            found = await bob.look(f"/v1/chats/{chat_id}", sent["position"])
            people = await bob.see(f"/v1/chats/{chat_id}/participants", sent["position"])
    assert added["added"] == [eve.user_id]
    assert int(found.headers["log-position"]) == sent["position"]
    assert (good(found)["unread_count"], good(found)["last_message"]["seq"]) == (2, 3)
    assert len(people["items"]) == 3
