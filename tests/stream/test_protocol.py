"""The protocol of contract.md, section 4, over real sockets: who may speak, when, and how it ends."""

import asyncio
import json
import time
from contextlib import AsyncExitStack
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any
from uuid import uuid4

import jwt
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.stream import connection, sockets, stream, wire
from api.stream.readings import Readings
from tests.api.conversations import group, say
from tests.api.served import PASSWORD, Api, Json, Person, serving, serving_all
from tests.infra.machines import SECRET
from tests.stream.client import WAIT_SECONDS, Client, connected
from tests.stream.raw import narrow
from tests.stream.started import started, token

People = tuple[Person, Person, Person]

ENDED_WITHIN_SECONDS = 1.0
# A machine that is busy makes one or another late; a process that waits makes all.
ENDED_ATTEMPTS = 5
# What did not come by then, and for which nothing is on its way, does not come.
QUIET_SECONDS = 0.6


async def refused(url: str, *said: Json, authorization: str | None = None) -> int | None:
    """The code that a connection is closed with after it said this."""
    headers = {} if authorization is None else {"Authorization": authorization}
    async with connect(
        url.replace("http", "ws", 1) + "/v1/stream", additional_headers=headers
    ) as opened:
        for one in said:
            await opened.send(json.dumps(one))
        await asyncio.wait_for(opened.wait_closed(), WAIT_SECONDS)
        return opened.close_code


# ------------------------------------------------------------------------- authentication


async def test_a_token_comes_by_header_or_in_the_first_frame(api: Api) -> None:
    ann = await api.person("ann")
    async with connected(api.url, token(ann)) as client:
        assert (await client.start())["resumed"] is False
    async with connected(api.url, None) as client:
        await client.say("ping")
        await client.wait(lambda frame: frame["op"] == "pong")
        await client.say("authenticate", token=token(ann))
        # Without waiting: what follows the token waits for it to be looked at.
        ready = await client.start()
        assert {"op", "position", "epoch", "resumed", "heartbeat_ms"} == set(ready)
        assert (ready["epoch"], ready["heartbeat_ms"]) == (1, 30_000)


async def test_who_sends_no_token_in_time_is_closed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "AUTHENTICATE_SECONDS", 0.2)
    ann = await api.person("ann")
    async with connected(api.url, token(ann)) as known, connected(api.url, None) as nobody:
        await nobody.say("ping")
        assert await nobody.close_code() == 4001
        await known.start()


def test_a_client_has_five_seconds_for_its_token() -> None:
    assert stream.AUTHENTICATE_SECONDS == connection.AUTHENTICATE_SECONDS == 5


async def test_nothing_is_done_for_who_is_not_authenticated(api: Api) -> None:
    for said in (
        {"op": "start"},
        {"op": "received", "position": 1},
        {"op": "typing", "chat_id": "00000002-0000-7000-8000-000000000001"},
        {"op": "command", "ref": 1, "name": "register-user", "data": {}},
    ):
        assert await refused(api.url, said) == 4001


async def test_a_token_that_does_not_hold_is_no_token(api: Api) -> None:
    ann = await api.person("ann")
    good_token = token(ann)
    claims = jwt.decode(good_token, options={"verify_signature": False})
    key = SECRET.derive("access tokens")
    ended = await api.log_in("ann")
    path = f"/v1/sessions/{ended['session_id']}"
    assert (await ann.client.delete(path)).status_code == 204
    for broken in (
        "",
        "x",
        good_token[:-2],
        ann.session["refresh_token"],
        ended["access_token"],
        jwt.encode(claims | {"exp": int(time.time()) - 1}, key),
        jwt.encode(claims, b"another key of thirty-two bytes!"),
        "\N{SNOWMAN}",
    ):
        assert await refused(api.url, {"op": "authenticate", "token": broken}) == 4001
    assert await refused(api.url, authorization=f"Bearer {good_token}x") == 4001
    assert await refused(api.url, authorization=f"Basic {good_token}") == 4001
    assert await refused(api.url, authorization=good_token) == 4001


async def test_a_new_token_of_the_same_user_is_welcome_and_another_users_is_not(api: Api) -> None:
    ann, bob = await api.person("ann"), await api.person("bob")
    refreshed = await ann.client.post(
        "/v1/sessions/refresh", json={"refresh_token": ann.session["refresh_token"]}
    )
    async with connected(api.url, token(ann)) as client:
        await client.start()
        await client.say("authenticate", token=refreshed.json()["access_token"])
        await client.do("update-profile", display_name="Ann")
        await client.say("authenticate", token=token(bob))
        assert await client.close_code() == 4001


async def test_an_ended_session_ends_its_streams_within_a_second_on_every_process(
    database_url: str, nats_url: str
) -> None:
    async with serving(database_url, nats_url) as one, serving(database_url, nats_url) as two:
        ann = await one.person("ann")
        async with connected(two.url, token(ann)) as kept:
            for _ in range(ENDED_ATTEMPTS):
                session = await one.log_in("ann")
                if await ended_seconds(one, two, ann, session) < ENDED_WITHIN_SECONDS:
                    break
            else:
                raise AssertionError(f"never within {ENDED_WITHIN_SECONDS} s")
            await kept.start()
            assert kept.closed is None


async def ended_seconds(one: Api, two: Api, person: Person, session: Json) -> float:
    """How long the session's streams go on after its end."""
    access_token = session["access_token"]
    async with (
        connected(one.url, access_token) as here,
        connected(two.url, access_token) as there,
        connected(two.url, None) as waiting,
    ):
        await there.start()
        await waiting.say("authenticate", token=access_token)
        await waiting.say("ping")
        await waiting.wait(lambda frame: frame["op"] == "pong")
        began = time.monotonic()
        response = await person.client.delete(f"/v1/sessions/{session['session_id']}")
        assert response.status_code == 204
        codes = await asyncio.gather(*(client.close_code() for client in (here, there, waiting)))
        seconds = time.monotonic() - began
    assert codes == [4003] * 3
    return seconds


async def test_a_password_changed_and_an_account_deleted_end_the_streams(api: Api) -> None:
    ann = await api.person("ann")
    other = await api.log_in("ann")
    async with (
        connected(api.url, other["access_token"]) as elsewhere,
        connected(api.url, token(ann)) as client,
    ):
        await client.start()
        words = {"current_password": "correct horse", "new_password": "battery staple"}
        await client.do("change-password", **words)
        assert await elsewhere.close_code() == 4003
        await client.event("password_changed")
        # It is carried out, though who asked for it may not hear so.
        await client.say(
            "command", ref=1, name="delete-account", data={"password": "battery staple"}
        )
        assert await client.close_code() == 4003


# ------------------------------------------------------------------------------- starting


async def test_who_resumes_gets_each_event_once_from_wherever_they_were(
    whole_api: Api, people: People
) -> None:
    ann, bob, eve = people
    chat_id = await group(ann, bob)
    positions = [one["position"] for one in await say(ann, chat_id, "a", "b", "c")]
    async with started(whole_api, eve) as [stranger]:
        for after in (positions[0] - 1, positions[0], positions[2]):
            async with connected(whole_api.url, token(bob)) as client:
                ready = await client.start(after=after, epoch=1)
                assert ready["resumed"]
                assert ready["position"] >= positions[-1]
                [live] = await say(ann, chat_id, "live")
                positions.append(live["position"])
                await client.event("message_sent", message_id=live["message_id"])
                assert said(client) == [one for one in positions if one > after]
                assert client.positions == sorted(set(client.positions))
        assert stranger.events == []


async def test_a_client_that_can_not_resume_is_told_so_and_gets_nothing_old(
    database_url: str, nats_url: str
) -> None:
    async with serving_all(database_url, nats_url, stream_catch_up_events=3) as api:
        ann, bob = await api.person("ann"), await api.person("bob")
        chat_id = await group(ann, bob)
        [sent] = await say(ann, chat_id, "old")
        head = sent["position"]
        async with started(api, ann) as [seen]:
            for ahead, epoch in ((None, 1), (1_000, 1), (-5, 1), (0, 2), (0, 0), (2**62, None)):
                after = None if ahead is None else head + ahead
                async with connected(api.url, token(bob)) as client:
                    ready = await client.start(after=after, epoch=epoch)
                    assert (ready["resumed"], ready["epoch"]) == (False, 1)
                    assert ready["position"] >= head
                    [live] = await say(ann, chat_id, "live")
                    await client.event("message_sent")
                    assert said(client) == [live["position"]]
                await seen.reached(live["position"])
                head = (await ann.do("mark-read", chat_id=chat_id))["position"]
            # As far back as is allowed.
            async with connected(api.url, token(bob)) as client:
                assert (await client.start(after=head - 3))["resumed"]


def said(client: Client) -> list[int]:
    return [one["position"] for one in client.events if one["type"] == "message_sent"]


async def test_a_client_may_start_again_also_while_it_starts(
    whole_api: Api, people: People
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [sent] = await say(ann, chat_id, "a")
    async with connected(whole_api.url, token(bob)) as client:
        await client.start(after=sent["position"] - 1)
        await client.event("message_sent", content="a")
        seen = len(client.frames)
        await client.start(after=sent["position"] - 1)
        await client.event("message_sent", since=seen, content="a")
        seen = len(client.frames)
        await client.start()
        await say(ann, chat_id, "b")
        await client.event("message_sent", since=seen, content="b")
        again = [one["position"] for one in client.frames[seen:] if one["op"] == "event"]
        assert len(again) == len(set(again)), "once, though it had started before"
        seen = len(client.frames)
        for _ in range(3):
            await client.say("start", after=sent["position"] - 1)
        await say(ann, chat_id, "c")
        await client.event("message_sent", since=seen, content="c")
        # Until it is through, an earlier start may have told it too.
        await client.wait(lambda _: "c" in told_since_start(client))
        told = told_since_start(client)
        assert told == ["a", "b", "c"], "each once since the last start, which ended the others"


def told_since_start(client: Client) -> list[str]:
    began = max(n for n, one in enumerate(client.frames) if one["op"] == "ready")
    return [one["data"]["content"] for one in client.frames[began:] if one["op"] == "event"]


@pytest.mark.parametrize("said", ["received", "typing"])
async def test_what_needs_a_start_does_not_come_before_it(api: Api, said: str) -> None:
    ann = await api.person("ann")
    fields: dict[str, Any] = {
        "received": {"position": 1},
        "typing": {"chat_id": "00000002-0000-7000-8000-000000000001"},
    }[said]
    async with connected(api.url, token(ann)) as client:
        await client.say(said, **fields)
        assert await client.close_code() == 4009


# ------------------------------------------------------------------------------- commands


async def test_commands_are_answered_as_over_http(whole_api: Api, people: People) -> None:
    ann, bob, eve = people
    chat_id = await group(ann, bob)
    async with connected(whole_api.url, token(ann)) as client:  # no start: commands need none
        sent = await client.do("send-message", chat_id=chat_id, content="Hello")
        assert set(sent) == {"op", "ref", "position", "message_id", "created_at"}
        seen = await bob.see(f"/v1/messages/{sent['message_id']}", sent["position"])
        assert seen["content"] == "Hello"
        for name, data in (
            ("send-message", {"chat_id": chat_id, "content": ""}),
            ("send-message", {"chat_id": chat_id, "content": "x", "unknown": 1}),
            ("send-message", {"chat_id": "x", "content": "x"}),
            ("send-message", {"chat_id": chat_id, "content": 1}),
            ("send-message", {"chat_id": chat_id, "content": "\0"}),
            ("send-message", []),
            ("open-direct-chat", {"user_id": eve.user_id}),
            ("leave-group", {"chat_id": "00000002-0000-7000-8000-000000000001"}),
            ("register-user", {"username": "ann", "password": "correct horse"}),
            ("change-password", {"current_password": "no such", "new_password": "battery staple"}),
        ):
            over_http = (await ann.client.post(f"/v1/commands/{name}", json=data)).json()
            await client.say("command", ref=name, name=name, data=data)
            answer = await client.wait(lambda frame: frame["op"] == "problem")
            client.frames.remove(answer)
            assert answer == {"op": "problem", "ref": name, "problem": over_http}
            assert over_http["status"] >= 400
        for name in ("", "settle-presence", "record-deliveries", "settle-deletion", "no-such"):
            answer = await client.command(name)
            assert answer["problem"]["code"] == "not-found"
        assert client.closed is None


async def test_a_command_sent_again_with_its_key_is_answered_as_the_first_time(
    api: Api,
) -> None:
    ann, bob = await api.person("ann"), await api.person("bob")
    chat_id = await group(ann, bob)
    data = {"chat_id": chat_id, "content": "once"}
    async with connected(api.url, token(ann)) as client:
        first = await client.command("send-message", key="k", **data)
        again = await client.command("send-message", key="k", **data)
        assert again == first | {"idempotency_replayed": True, "ref": again["ref"]}
        over_http = await ann.send("send-message", "k", **data)
        assert over_http.headers["idempotency-replayed"] == "true"
        assert over_http.json()["message_id"] == first["message_id"]
        other = await client.command("send-message", key="k", chat_id=chat_id, content="twice")
        assert other["problem"]["code"] == "idempotency-key-reused"
        bad = await client.command("send-message", key="\n", **data)
        assert bad["problem"]["status"] == 400


async def test_answers_come_in_order_and_bear_their_refs_whatever_these_are(api: Api) -> None:
    ann = await api.person("ann")
    refs: list[Any] = [1, None, "a", {"b": [True, None]}, [], 2.5, "", *range(100)]
    async with connected(api.url, token(ann)) as client:
        for number, ref in enumerate(refs):
            await client.say(
                "command",
                ref=ref,
                name="update-profile" if number % 2 else "no-such",
                data={"display_name": f"Ann {number}"},
            )
        await client.wait(lambda frame: frame.get("ref") == 99)
        assert [frame["ref"] for frame in client.frames] == refs
        wanted = ["result" if number % 2 else "problem" for number in range(len(refs))]
        assert [frame["op"] for frame in client.frames] == wanted
        await client.say("command", ref="x" * 255, name="no-such")
        assert await client.close_code() == 4009


async def test_messages_sent_without_waiting_are_written_in_their_order(api: Api) -> None:
    """Also those that reply to one whose answer is not there yet."""
    ann, ben = await api.person("ann"), await api.person("ben")
    chat_id = await group(ann, ben)
    ids = [str(uuid4()) for _ in range(150)]
    async with connected(api.url, token(ann)) as client:
        for number, message_id in enumerate(ids):
            data = {"chat_id": chat_id, "content": str(number), "message_id": message_id}
            if number % 7 == 6:
                data["reply_to_id"] = ids[number - 1]
            await client.say("command", ref=number, name="send-message", data=data)
        await client.wait(lambda frame: frame.get("ref") == len(ids) - 1)
        results = [frame for frame in client.frames if frame["op"] == "result"]
    assert [frame["message_id"] for frame in results] == ids
    positions = [frame["position"] for frame in results]
    assert positions == sorted(set(positions))


async def test_commands_on_the_stream_are_limited_like_those_over_http(
    database_url: str, nats_url: str
) -> None:
    limits = {
        "rate_limits": True,
        "rate_limit_user_burst": 4,
        "rate_limit_user_per_second": 0.001,
        "rate_limit_password_burst": 3,
        "rate_limit_password_per_second": 0.001,
    }
    async with serving(database_url, nats_url, **limits) as api:
        ann = await api.person("ann")  # two passwords
        async with connected(api.url, token(ann)) as client:
            await client.do("update-profile", display_name="A")
            words = {"current_password": "wrong word", "new_password": "battery staple"}
            assert (await client.command("change-password", **words))["problem"]["status"] == 403
            limited = (await client.command("change-password", **words))["problem"]
            assert (limited["status"], limited["code"]) == (429, "rate-limited")
            assert "by password" in limited["detail"]
            await client.do("update-profile", display_name="B")
            limited = (await client.command("update-profile", display_name="C"))["problem"]
            assert (limited["status"], limited["code"]) == (429, "rate-limited")
            assert "by user" in limited["detail"]
            # A start costs at least what a query does.
            await client.say("start")
            assert await client.close_code() == 1013
        assert (await ann.send("update-profile", display_name="D")).status_code == 429


# ------------------------------------------------------------------- heartbeats and limits


class Clock:
    """In place of the module `time`: it goes on when the test says so."""

    seconds = 1_000.0

    def monotonic(self) -> float:
        return self.seconds


async def test_a_silent_client_is_asked_then_closed_and_one_that_answers_is_kept(
    database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    for module in (connection, sockets):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(stream, "SWEEP_SECONDS", 0.02)
    async with serving(database_url, nats_url, stream_heartbeat_seconds=10.0) as api:
        ann = await api.person("ann")
        async with (
            connected(api.url, token(ann)) as silent,
            connected(api.url, token(ann)) as answers,
            connected(api.url, token(ann)) as pings,
        ):
            assert (await answers.start())["heartbeat_ms"] == 10_000
            clock.seconds += 6
            await (await pings.connection.ping())  # of the WebSocket itself
            clock.seconds += 6
            for client in (silent, answers):
                await client.wait(lambda frame: frame["op"] == "ping")
            await answers.say("pong")
            await (await pings.connection.ping())
            async with asyncio.timeout(WAIT_SECONDS):
                while heard_ats(api).count(clock.seconds) < 2:
                    await asyncio.sleep(0.01)
            clock.seconds += 9
            assert await silent.close_code() == 4008
            assert [frame["op"] for frame in silent.frames] == ["ping"]
            await answers.say("ping")
            await answers.wait(lambda frame: frame["op"] == "pong")
            assert pings.closed is None
            assert pings.frames == []


async def test_a_client_that_does_not_read_is_closed_and_resumes(
    whole_api: Api, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob, _ = people
    monkeypatch.setattr(wire, "MAX_BUFFERED_BYTES", 64 * 1024)
    monkeypatch.setattr(wire, "CLOSE_SECONDS", 0.1)
    chat_id = await group(ann, bob)
    async with (
        started(whole_api, ann) as [writer],
        connected(whole_api.url, token(bob), sock=narrow(whole_api.url), max_queue=1) as slow,
    ):
        ready = await slow.start()
        [server_side] = sockets_of(whole_api, bob)
        server_side.transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)
        slow.connection.transport.pause_reading()
        while server_side.is_open:
            assert len(said(writer)) < 100, "too much is kept for it"
            await asyncio.gather(
                *(
                    writer.do("send-message", chat_id=chat_id, content="x" * 10_000)
                    for _ in range(8)
                )
            )
            await asyncio.sleep(0.1)
        last = await writer.do("send-message", chat_id=chat_id, content="last")
        await asyncio.sleep(0.3)  # it is told why, though it begins to read only now
        slow.connection.transport.resume_reading()
        assert await slow.close_code() == 4008
        async with connected(whole_api.url, token(bob)) as again:
            after = slow.positions[-1] if slow.events else ready["position"]
            assert (await again.start(after=after))["resumed"]
            await again.event("message_sent", message_id=last["message_id"])
            await writer.event("message_sent", message_id=last["message_id"])
            assert said(slow) + said(again) == said(writer)


def heard_ats(api: Api) -> list[float]:
    return [one.heard_at for one in api.live._services.sockets._all]


def sockets_of(api: Api, person: Person) -> list[Any]:
    """The server's ends."""
    return [one._socket for one in api.live._services.sockets._of_user[person.user_id]]


async def test_a_client_that_does_not_read_what_it_missed_keeps_nobody_from_starting(
    whole_api: Api, people: People
) -> None:
    ann, bob, carl = people
    chat_id = await group(ann, bob, carl)
    first, *_, last = await say(ann, chat_id, *(["x" * 10_000] * 60))
    whole_api.live._services.places.free = asyncio.Semaphore(1)
    async with (
        connected(whole_api.url, token(bob), sock=narrow(whole_api.url), max_queue=1) as slow,
        connected(whole_api.url, token(carl)) as prompt,
    ):
        [server_side] = sockets_of(whole_api, bob)
        server_side.transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)
        after = first["position"] - 1
        await slow.start(after=after)
        slow.connection.transport.pause_reading()
        assert (await prompt.start(after=after))["resumed"]
        slow.connection.transport.resume_reading()
        for client in (slow, prompt):
            await client.reached(last["position"])
            assert len(said(client)) == 60


async def test_beyond_a_number_of_sockets_a_client_is_sent_away_before_the_upgrade(
    database_url: str, nats_url: str
) -> None:
    async with serving(database_url, nats_url, stream_sockets=2) as api:
        ann = await api.person("ann")
        async with connected(api.url, token(ann)), connected(api.url, None):
            with pytest.raises(InvalidStatus) as refusal:
                async with connected(api.url, token(ann)):
                    pass
            response = refusal.value.response
            assert response.status_code == 503
            assert 1 <= int(response.headers["retry-after"]) <= stream.MAX_RETRY_AFTER_SECONDS
            assert response.headers["content-type"] == "application/problem+json"
            assert json.loads(response.body or b"")["code"] == "unavailable"
        async with asyncio.timeout(WAIT_SECONDS):
            while len(api.live._services.sockets):
                await asyncio.sleep(0.02)
        async with connected(api.url, token(ann)) as client:
            await client.start()


async def test_one_user_has_a_number_of_sockets_and_others_theirs(
    database_url: str, nats_url: str
) -> None:
    async with serving(database_url, nats_url, stream_sockets_of_user=2) as api:
        ann, bob = await api.person("ann"), await api.person("bob")
        async with (
            started(api, ann, ann) as [one, two],
            connected(api.url, token(ann)) as three,
            connected(api.url, token(bob)) as other,
        ):
            closed = [client for client in (one, two, three) if await is_refused(client)]
            assert closed == [three]
            await other.start()
            await one.leave()
            async with connected(api.url, token(ann)) as four:
                await four.start()


async def is_refused(client: Client) -> bool:
    try:
        await client.start()
    except (AssertionError, ConnectionClosed):
        assert await client.close_code() == 1013
        return True
    return False


async def test_the_address_is_limited_before_the_upgrade(database_url: str, nats_url: str) -> None:
    limits = {
        "rate_limits": True,
        "rate_limit_address_burst": 4,
        "rate_limit_address_per_second": 0.001,
    }
    async with serving(database_url, nats_url, **limits) as api:
        ann = await api.person("ann")
        async with connected(api.url, token(ann)), connected(api.url, None):
            with pytest.raises(InvalidStatus) as refusal:
                async with connected(api.url, token(ann)):
                    pass
            assert refusal.value.response.status_code == 429
            assert refusal.value.response.headers["retry-after"]


async def test_what_is_no_websocket_is_told_so(api: Api) -> None:
    response = await api.client.get("/v1/stream")
    assert response.status_code == 400
    assert response.json()["code"] == "malformed"
    assert (await api.client.post("/v1/stream")).status_code in (400, 405)
    for path in ("/v1/streams", "/v1/users/me"):
        with pytest.raises(InvalidStatus) as refusal:
            async with connect(api.url.replace("http", "ws", 1) + path):
                pass
        assert 400 <= refusal.value.response.status_code < 500


async def test_a_process_that_stops_tells_each_client_when_to_come_back(
    database_url: str, nats_url: str
) -> None:
    async with serving(database_url, nats_url) as api, AsyncExitStack() as stack:
        ann = await api.person("ann")
        clients = [
            await stack.enter_async_context(connected(api.url, token(ann))) for _ in range(20)
        ]
        for client in clients[:3]:
            await client.start()
        api.server.should_exit = True
        codes = await asyncio.gather(*(client.close_code() for client in clients))
        assert codes == [1012] * 20
        delays = [
            json.loads(client.closed[1])["reconnect_ms"] for client in clients if client.closed
        ]
        assert len(set(delays)) > 10
        assert max(delays) <= 1000 * wire.RETURN_SECONDS


# Longer than any machine takes for a line.
SILENCE_SECONDS = 600.0


def test_an_open_connection_is_asked_once_a_silence() -> None:
    """Not once a sweep: a client that answers late is not asked over and over."""

    class One:
        heard_at = time.monotonic() - 1.5 * SILENCE_SECONDS
        pinged_at = 0.0

        def ping(self) -> None: ...

        def end(self, code: int, reason: str) -> None: ...

    pinged: list[Any] = []
    closed: list[Any] = []
    open_sockets = sockets.Sockets(max_sockets=1, max_of_user=1)
    one = One()
    open_sockets.add(one)
    for _ in range(3):
        open_sockets.sweep(SILENCE_SECONDS, pinged.append, closed.append)
    assert (pinged, closed) == ([one], [])
    one.heard_at -= SILENCE_SECONDS
    open_sockets.sweep(SILENCE_SECONDS, pinged.append, closed.append)
    assert (pinged, closed) == ([one], [one])


async def test_what_comes_right_after_a_start_is_taken_though_it_is_not_through(
    whole_api: Api, people: People
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [sent] = await say(ann, chat_id, "a")
    async with connected(whole_api.url, token(bob)) as client:
        await client.say("start", after=sent["position"] - 1)
        await client.say("received", position=sent["position"])
        await client.say("typing", chat_id=chat_id)
        delivered = await client.event("messages_delivered")
        assert delivered["position"] > sent["position"]


async def test_who_deletes_the_account_over_the_stream_is_answered_before_it_closes(
    whole_api: Api, people: People
) -> None:
    ann, _, _ = people
    async with connected(whole_api.url, token(ann)) as client:
        await client.start()
        result = await client.do("delete-account", password=PASSWORD)
        assert result["position"]
        assert await client.close_code() == 4003


async def test_a_start_that_fails_in_whatever_way_is_not_left_waiting(
    whole_api: Api, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, _, _ = people

    async def fails(*_: Any, **__: Any) -> None:
        raise ValueError("nobody thought of it")

    monkeypatch.setattr(Readings, "whereabouts", fails)
    async with connected(whole_api.url, token(ann)) as client:
        await client.say("start")
        assert await client.close_code() == 1013
