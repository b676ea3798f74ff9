"""The end of an account: over HTTP, through crashes at each step, and while others are at it."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import httpx
import pytest

from api.erasure import run_report
from infra import verify
from infra.bus import Bus, stream_name
from infra.database import Connection
from infra.embedded.process import free_port
from infra.embedded.s3 import S3
from projections import PROJECTIONS
from tests.api import process
from tests.api.served import (
    ENDED_WITHIN_SECONDS,
    PASSWORD,
    Api,
    Json,
    Person,
    bearer,
    good,
    problem,
    refused_within,
    serving,
    serving_all,
    settings,
    stored_in,
)
from tests.infra.daemons import connected, copied, keyring, projected, relaying, until
from tests.infra.machines import SECRET_TEXT, fetch
from tests.infra.test_erasure import dumped

USERNAME, NAME, AVATAR = "zebulonquartz", "Zaphira Quux", "https://example.org/zq77.png"
DEVICE, SAID, EDITED = "Zaphones", "xylophone marmalade", "theremin marmalade"
PROFILE = ("zebulon", "zaphira", "zq77", "zaphones")
CONTENT = ("xyloph", "theremin", "marmalad")
GROUPS = 60
NO_PARAMETERS: dict[str, str] = {}

WAITING = """
    SELECT count(*) > 0
    FROM pg_locks
    WHERE NOT granted AND relation = to_regclass(%s)
"""

DELETED = """
    SELECT position
    FROM event_log
    WHERE type = 'account_deleted'
"""

LEFT = """
    SELECT
        (SELECT count(*) FROM unique_values WHERE scope IN ('membership', 'contact')
            AND starts_with(value, %(user_id)s)),
        (SELECT count(*) FROM user_keys WHERE user_id = %(user_id)s::uuid),
        (SELECT count(*) FROM sessions WHERE user_id = %(user_id)s::uuid AND ended_at IS NULL),
        (SELECT count(*) FROM erased_keys
            WHERE user_id = %(user_id)s::uuid AND finished_at IS NULL)
"""

AFTER_THE_END = """
    SELECT type
    FROM event_log
    WHERE position > (SELECT position FROM event_log WHERE type = 'account_deleted')
        AND metadata ->> 'actor' = %s
        AND metadata ->> 'command' <> 'settle-deletion'
"""


class Scene(NamedTuple):
    """Two friends with a direct chat and a group; what `ann` is and says is looked for later."""

    ann: Person
    ben: Person
    group: str
    direct: str
    message: str


async def scene(api: Api) -> Scene:
    await api.register(USERNAME, display_name=NAME)
    ann = await api.signed_in(USERNAME)
    await api.log_in(USERNAME, device_name=DEVICE)
    ben = await api.person("ben")
    await ann.do("update-profile", avatar_url=AVATAR)
    await ann.do("request-contact", user_id=ben.user_id)
    await ben.do("accept-contact", user_id=ann.user_id)
    direct = (await ann.do("open-direct-chat", user_id=ben.user_id))["chat_id"]
    group = (await ann.do("create-group", name="Friends", member_ids=[ben.user_id]))["chat_id"]
    await ann.do("send-message", chat_id=direct, content=SAID)
    sent = await ann.do("send-message", chat_id=group, content=SAID)
    await ann.do("edit-message", message_id=sent["message_id"], content=EDITED)
    await ben.do("send-message", chat_id=group, content="me too", reply_to_id=sent["message_id"])
    return Scene(ann, ben, group, direct, sent["message_id"])


async def seen_by(ben: Person, ann: Person, scene: Scene, position: int) -> str:
    """What every query answers somebody else, in lower case."""
    answers = [
        await ben.look(path, position, **parameters)
        for path, parameters in (
            ("/v1/users/me", NO_PARAMETERS),
            (f"/v1/users/{ann.user_id}", NO_PARAMETERS),
            ("/v1/users", {"prefix": "ze"}),
            ("/v1/users", {"prefix": "za"}),
            ("/v1/contacts", NO_PARAMETERS),
            ("/v1/chats", NO_PARAMETERS),
            (f"/v1/chats/{scene.group}", NO_PARAMETERS),
            (f"/v1/chats/{scene.direct}", NO_PARAMETERS),
            (f"/v1/chats/{scene.group}/participants", NO_PARAMETERS),
            (f"/v1/chats/{scene.group}/messages", NO_PARAMETERS),
            (f"/v1/chats/{scene.direct}/messages", NO_PARAMETERS),
            (f"/v1/messages/{scene.message}", NO_PARAMETERS),
            (f"/v1/messages/{scene.message}/reactions", NO_PARAMETERS),
            ("/v1/unread", NO_PARAMETERS),
            ("/v1/search/messages", {"q": "marmalade"}),
            ("/v1/search/messages", {"q": "xylophone"}),
            ("/v1/state", NO_PARAMETERS),
        )
    ]
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    return "\n".join(answer.text for answer in answers).lower()


async def copy_of_log(database_url: str, nats_url: str) -> str:
    """Every payload in NATS, in lower case."""
    await copied(database_url, nats_url)
    async with Bus(nats_url, name="test") as bus:
        last = await bus.last_sequence(stream_name(1)) or 0
        messages = [await bus.jetstream.get_msg(stream_name(1), n) for n in range(1, last + 1)]
    return "\n".join((message.data or b"").decode() for message in messages).lower()


async def verified(database_url: str) -> None:
    """Live tables are what a rebuild makes of the log and the keys that are left."""
    await projected(database_url)
    async with keyring(database_url) as keys:
        for projection in PROJECTIONS:
            verdict = await verify.verify(
                projection, url=database_url, keyring=keys, progress=lambda *_: None
            )
            assert verdict.differing == 0, verdict.shown


def readable(texts: tuple[str, ...], said: str) -> list[str]:
    return [text for text in texts if text in said]


@pytest.mark.parametrize("erase_messages", [False, True])
async def test_nothing_that_was_to_go_can_be_read_anywhere(
    database_url: str,
    nats_url: str,
    s3_server: S3,
    capsys: pytest.CaptureFixture[str],
    erase_messages: bool,
) -> None:
    gone = PROFILE + CONTENT if erase_messages else PROFILE
    async with (
        relaying(database_url, nats_url),
        serving_all(database_url, nats_url, **stored_in(s3_server)) as api,
        connected(database_url) as connection,
    ):
        now = await scene(api)
        await projected(database_url)
        before = await dumped(connection)
        assert readable(PROFILE + CONTENT, before) == [*PROFILE, *CONTENT]
        assert await run_report(api.parts.settings, USERNAME) == 1
        done = await now.ann.do("delete-account", password=PASSWORD, erase_messages=erase_messages)
        await verified(database_url)
        for said in (
            await dumped(connection),
            await copy_of_log(database_url, nats_url),
            await seen_by(now.ben, now.ann, now, done["position"]),
        ):
            assert readable(gone, said) == []
        shown = "[Deleted]" if erase_messages else EDITED
        message = await now.ben.see(f"/v1/messages/{now.message}", done["position"])
        assert (message["content"], message["is_deleted"]) == (shown, False)
        for user in (USERNAME, now.ann.user_id):
            assert await run_report(api.parts.settings, user) == 0
    report = capsys.readouterr().out
    assert report.count("nothing that was to be erased can be read") == 2
    assert ("messages were to stay" in report) is not erase_messages


async def test_the_chats_live_on_without_the_deleted_user(
    whole_api: Api, database_url: str
) -> None:
    now = await scene(whole_api)
    done = await now.ann.do("delete-account", password=PASSWORD)
    ben, position = now.ben, done["position"]
    group = await ben.see(f"/v1/chats/{now.group}", position)
    assert (group["owner_id"], group["my_role"]) == (ben.user_id, "owner")
    participants = (await ben.see(f"/v1/chats/{now.group}/participants", position))["items"]
    assert [one["user"]["id"] for one in participants] == [ben.user_id]
    direct = await ben.see(f"/v1/chats/{now.direct}", position)
    assert direct["peer"]["display_name"] == "[Deleted User]"
    (message,) = (await ben.see(f"/v1/chats/{now.direct}/messages", position))["items"]
    assert message["sender"] == {"id": now.ann.user_id, "display_name": "[Deleted User]"}
    assert message["content"] == SAID
    assert (await ben.see("/v1/contacts", position))["items"] == []
    refused = await ben.send("send-message", chat_id=now.direct, content="are you there?")
    assert refused.status_code == 403
    assert position == (await whole_api.parts.executor.head())


async def test_a_deleted_account_is_closed_for_good(api: Api) -> None:
    ann = await api.person(USERNAME)
    problem(await ann.send("delete-account", password="not this one"), 403, "wrong-credentials")
    await ann.do("delete-account", password=PASSWORD)
    problem(await ann.look("/v1/sessions"), 401, "unauthenticated")
    account = {"username": USERNAME, "password": PASSWORD}
    problem(await api.client.post("/v1/sessions", json=account), 401, "wrong-credentials")
    refreshed = await api.client.post(
        "/v1/sessions/refresh", json={"refresh_token": ann.session["refresh_token"]}
    )
    problem(refreshed, 401, "unauthenticated")
    again = await api.client.post("/v1/commands/register-user", json=account)
    problem(again, 409, "username-taken")
    same_id = {"username": "other", "password": PASSWORD, "user_id": ann.user_id}
    problem(await api.client.post("/v1/commands/register-user", json=same_id), 409, "conflict")


async def test_in_a_batch_it_ends_the_account_before_the_next_command(api: Api) -> None:
    ann, ben = await api.person("ann"), await api.person("ben")
    chat = await ann.do("create-group", name="Friends", member_ids=[ben.user_id])
    late = {"chat_id": chat["chat_id"], "content": "one more thing"}
    commands = [
        {"name": "delete-account", "data": {"password": PASSWORD}},
        {"name": "send-message", "data": late},
        {"name": "update-profile", "data": {"display_name": "Still here"}},
        {"name": "set-status", "data": {"status": "online"}},
        {"name": "create-group", "data": {"name": "New", "member_ids": [ben.user_id]}},
    ]
    results = good(await ann.client.post("/v1/commands", json={"commands": commands}))["results"]
    assert results[0]["position"] == await api.parts.executor.head()
    assert [one["problem"]["status"] for one in results[1:]] == [404] * 4
    problem(await ann.look("/v1/sessions"), 401, "unauthenticated")


async def test_more_groups_and_contacts_than_are_settled_at_once(
    whole_api: Api, database_url: str
) -> None:
    ann, ben = await whole_api.person("ann"), await whole_api.person("ben")
    others = [await whole_api.register(f"other_{n}") for n in range(GROUPS)]
    for other in others:
        await ann.do("request-contact", user_id=other["user_id"])
        await ann.do("create-group", name="Friends", member_ids=[ben.user_id])
    done = await ann.do("delete-account", password=PASSWORD)
    chats = (await ben.see("/v1/chats", done["position"], limit=100))["items"]
    assert [chat["owner_id"] for chat in chats] == [ben.user_id] * GROUPS
    async with connected(database_url) as connection:
        assert await left(connection, ann.user_id) == (0, 1, 0, 0)
    await verified(database_url)


async def left(connection: Connection, user_id: str) -> tuple[int, ...]:
    """Claims, keys, open sessions, unfinished erasures."""
    cursor = await connection.execute(LEFT, {"user_id": user_id})
    row: Any = await cursor.fetchone()
    return tuple(row)


async def test_nobody_else_loses_anything(api: Api) -> None:
    ann, ben = await api.person("ann"), await api.person("ben")
    before = (await ben.see("/v1/sessions"))["items"]
    await ann.do("delete-account", password=PASSWORD, erase_messages=True)
    assert (await ben.see("/v1/sessions"))["items"] == before
    assert await api.log_in("ben")


class Two(NamedTuple):
    """Two API processes, and who is about to be deleted."""

    one: process.ApiProcess
    other: process.ApiProcess
    client: httpx.AsyncClient
    ann: Json
    chat_id: str

    def delete(self, api: process.ApiProcess) -> Awaitable[httpx.Response]:
        return self.client.post(
            f"{api.url}/v1/commands/delete-account",
            json={"password": PASSWORD, "erase_messages": True},
            headers=bearer(self.ann) | {"Idempotency-Key": "the end"},
        )


@asynccontextmanager
async def two_processes(database_url: str, nats_url: str) -> AsyncIterator[Two]:
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(process.running(database_url, nats_url))
            for _ in range(2)
        ]
        client = await stack.enter_async_context(process.asking())
        sessions = []
        for username in (USERNAME, "ben"):
            account = {"username": username, "password": PASSWORD}
            good(await client.post(f"{one.url}/v1/commands/register-user", json=account))
            session = await client.post(f"{one.url}/v1/sessions", json=account)
            sessions.append(good(session, 201))
        ann, ben = sessions
        group = {"name": "Friends", "member_ids": [ben["user_id"]]}
        made = await client.post(
            f"{other.url}/v1/commands/create-group", json=group, headers=bearer(ann)
        )
        yield Two(one, other, client, ann, good(made)["chat_id"])


async def killed_at(two: Two, connection: Connection, lock: str, table: str) -> tuple[int, ...]:
    """Kills the one process when the deletion that it was asked for waits for a table; what is
    left of the account then."""
    async with connection.transaction():
        await connection.execute(lock.encode())
        asked = asyncio.ensure_future(two.delete(two.one))

        async def waits() -> bool:
            return bool((await fetch(connection, WAITING, table))[0][0])

        await until(waits, f"the deletion waits for {table}")
        assert len(await fetch(connection, DELETED)) == 1
        two.one.process.kill()
        await two.one.process.wait()
        # Before anybody gets the table: the other process begins when the deletion is not young.
        remains = await left(connection, two.ann["user_id"])
    await asyncio.gather(asked, return_exceptions=True)
    return remains


STEPS = pytest.mark.parametrize(
    ("lock", "table", "before"),
    [
        ("LOCK TABLE unique_values IN ACCESS EXCLUSIVE MODE", "unique_values", (1, 2, 1, 0)),
        ("LOCK TABLE erased_keys IN SHARE UPDATE EXCLUSIVE MODE", "erased_keys", (0, 2, 1, 0)),
        ("LOCK TABLE sessions IN SHARE MODE", "sessions", (0, 0, 1, 2)),
    ],
    ids=["before settling", "before the keys", "before the sessions"],
)


@STEPS
async def test_what_a_killed_process_left_another_finishes_by_itself(
    database_url: str, nats_url: str, lock: str, table: str, before: tuple[int, ...]
) -> None:
    async with (
        two_processes(database_url, nats_url) as two,
        connected(database_url) as connection,
    ):
        claims, keys, _, unfinished = await killed_at(two, connection, lock, table)
        assert (claims, keys, unfinished) == (before[0], before[1], before[3])

        async def is_finished() -> bool:
            return await left(connection, two.ann["user_id"]) == (0, 0, 0, 0)

        await until(is_finished, "the other process finishes it")


@STEPS
async def test_or_the_client_finishes_it_by_asking_again(
    database_url: str, nats_url: str, lock: str, table: str, before: tuple[int, ...]
) -> None:
    async with (
        two_processes(database_url, nats_url) as two,
        connected(database_url) as connection,
    ):
        await killed_at(two, connection, lock, table)
        response = await two.delete(two.other)
        # Its last statement may have ended the sessions after the process was dead.
        if table != "sessions" or response.status_code == 200:
            good(response)
            assert await left(connection, two.ann["user_id"]) == (0, 0, 0, 0)


async def test_tokens_stop_in_every_process_within_a_second(
    database_url: str, nats_url: str
) -> None:
    async with two_processes(database_url, nats_url) as two:
        headers = bearer(two.ann)
        path = f"{two.other.url}/v1/sessions"
        good(await two.client.get(path, headers=headers))
        good(await two.delete(two.one))

        await refused_within(two.client, path, headers, ENDED_WITHIN_SECONDS)


async def test_two_processes_may_be_asked_at_once(database_url: str, nats_url: str) -> None:
    async with (
        two_processes(database_url, nats_url) as two,
        connected(database_url) as connection,
    ):
        responses = await asyncio.gather(two.delete(two.one), two.delete(two.other))
        assert [response.status_code for response in responses] == [200, 200]
        assert await left(connection, two.ann["user_id"]) == (0, 0, 0, 0)
        assert len(await fetch(connection, DELETED)) == 1


async def test_no_race_with_others_leaves_the_user_anywhere(
    database_url: str, nats_url: str
) -> None:
    """Others add the user to groups, write to and with them, until the account is gone."""
    async with (
        serving_all(database_url, nats_url, rate_limits=False) as api,
        serving(database_url, nats_url, rate_limits=False) as other,
        connected(database_url) as connection,
    ):
        now = await scene(api)
        ben = await other.signed_in("ben")
        over = asyncio.Event()
        busy = [
            asyncio.create_task(work)
            for work in (
                _add_again(ben, now.ann.user_id, over),
                _say(now.ann, now.group, SAID.upper(), over),
                _say(ben, now.group, "and so it goes", over),
                _befriend(ben, now.ann.user_id, over),
            )
        ]
        await asyncio.sleep(0.3)
        good(await now.ann.send("delete-account", password=PASSWORD, erase_messages=True))
        over.set()
        await asyncio.gather(*busy)
        assert await left(connection, now.ann.user_id) == (0, 0, 0, 0)
        assert await fetch(connection, AFTER_THE_END, now.ann.user_id) == []
        await verified(database_url)
        assert readable(PROFILE + CONTENT, await dumped(connection)) == []


async def _add_again(ben: Person, user_id: str, over: asyncio.Event) -> None:
    while not over.is_set():
        made = await ben.send("create-group", name="More", member_ids=[user_id])
        assert made.status_code in (200, 404), made.text


async def _say(person: Person, chat_id: str, content: str, over: asyncio.Event) -> None:
    while not over.is_set():
        said = await person.send("send-message", chat_id=chat_id, content=content)
        assert said.status_code in (200, 401, 404), said.text
        if said.status_code != 200:
            return


async def _befriend(ben: Person, user_id: str, over: asyncio.Event) -> None:
    while not over.is_set():
        for name in ("remove-contact", "request-contact"):
            changed = await ben.send(name, user_id=user_id)
            assert changed.status_code in (200, 404), changed.text


async def test_the_report_of_nobody_is_one_line(database_url: str, nats_url: str) -> None:
    environ = {
        **os.environ,
        "MESSENGER_ENV": "test",
        "MESSENGER_SECRET": SECRET_TEXT,
        "MESSENGER_DATABASE_URL": database_url,
        "MESSENGER_NATS_URL": nats_url,
        "MESSENGER_S3_ENDPOINT": "http://127.0.0.1:9",  # it is not even asked
        "MESSENGER_S3_ACCESS_KEY": "none",
        "MESSENGER_S3_SECRET_KEY": "none",
    }
    for user in ("nobody", "01a20ba6-b7e1-727c-ab74-0467b03984fe"):
        report = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "api.cli", "erasure", "report", user), env=environ, stderr=PIPE
        )
        _, said = await report.communicate()
        assert (report.returncode, said.decode()) == (1, f"messenger: there is no user '{user}'\n")


async def test_the_report_does_not_vouch_for_what_it_can_not_see(
    api: Api, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ann = await api.person("ann")
    await ann.do("delete-account", password=PASSWORD)
    without_nats = settings(database_url, f"nats://127.0.0.1:{free_port()}")
    assert await run_report(without_nats, "ann") == 1
    said = capsys.readouterr().out
    assert "not looked at: NATS" in said
    assert "object store" in said.rpartition("not looked at: ")[2]
    assert "nothing that was to be erased" not in said
