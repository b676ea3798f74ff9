"""infra/production/roles.sql, run: a whole API under its role, and all that the role must not do.

Everything is as in production: TLS with an authority of our own, rights of its own for each process.
"""

import asyncio
import os
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, LiteralString, NamedTuple
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from infra import database, migrate, processes, replay
from infra.appender import Appender
from infra.bus import Access, Bus
from infra.embedded.process import free_port
from infra.embedded.s3 import S3
from infra.keyring import Keyring, Secret
from infra.projector import Projector
from infra.relay import Relay
from projections import BY_NAME, PROJECTIONS
from tests.api.served import PASSWORD, Json, bearer, good, problem
from tests.infra import guarded, pictures
from tests.infra.certificates import Authority
from tests.infra.daemons import LOGGER, tasks, until, written
from tests.infra.guarded import Nats
from tests.stream.client import connected

ROLES = Path(__file__).parents[2] / "infra" / "production" / "roles.sql"
SECRET_TEXT = "0c7f3e9a1d5b86420c7f3e9a1d5b8642"
API_PASSWORD = "5e1f7c3a9b8d2460"
TIMEOUT_SECONDS = 60.0

SIGN_INS = (
    f"CREATE ROLE messenger_api_1 LOGIN PASSWORD '{API_PASSWORD}' IN ROLE messenger_api",
    f"CREATE ROLE stranger LOGIN PASSWORD '{API_PASSWORD}'",
)
EVENT = """
    INSERT INTO event_log (
        position, event_id, stream, stream_version, type, schema_version, data, metadata, recorded_at
    )
    VALUES (1000, gen_random_uuid(), 'x-1', 1, 'x', 1, '{}', '{}', now())
"""
# Each is refused to the API; the owner of the tables is refused the first lines too, by triggers.
FORBIDDEN = (
    EVENT,
    "UPDATE event_log SET type = 'x'",
    "DELETE FROM event_log",
    "TRUNCATE event_log",
    "COPY event_log FROM STDIN",
    "MERGE INTO event_log AS e USING log_head AS h ON true WHEN MATCHED THEN DELETE",
    "LOCK TABLE event_log IN ACCESS EXCLUSIVE MODE",
    "ALTER TABLE event_log DISABLE TRIGGER ALL",
    "ALTER TABLE event_log DISABLE TRIGGER event_log_no_change",
    "ALTER TABLE event_log RENAME TO other_log",
    "DROP TRIGGER event_log_no_change ON event_log",
    "CREATE TRIGGER late BEFORE INSERT ON event_log EXECUTE FUNCTION refuse_change_v1()",
    "CREATE RULE late AS ON INSERT TO event_log DO INSTEAD NOTHING",
    "DROP TABLE event_log",
    "SET session_replication_role = replica",
    "UPDATE log_head SET position = 0",
    "SELECT position FROM log_head FOR UPDATE",
    "DELETE FROM log_head",
    "UPDATE command_keys SET position = 0",
    "INSERT INTO unique_values (scope, value, holder) VALUES ('x', 'x', 'x')",
    "UPDATE projection_checkpoints SET position = 0",
    "INSERT INTO chats (id) VALUES (gen_random_uuid())",
    "DELETE FROM erased_keys",
    "UPDATE user_keys SET key = ''",
    "INSERT INTO instance_secrets (name, value) VALUES ('former x', '')",
    "UPDATE instance_secrets SET value = ''",
    "DELETE FROM instance_secrets",
    "DROP POLICY former_houses ON instance_secrets",
    "INSERT INTO skipped_events SELECT 'users', 1, 'x', 'x', 'x', now()",
    "UPDATE skipped_events SET why = 'x'",
    "DELETE FROM skipped_events",
    "INSERT INTO imports (digest, lines, begun_at) VALUES ('', 0, now())",
    "UPDATE imports SET finished_at = now()",
    "DELETE FROM imports",
    "ALTER FUNCTION append_v1 SECURITY INVOKER",
    "DROP FUNCTION append_v1",
    "CREATE OR REPLACE FUNCTION refuse_change_v1() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "CREATE TABLE public.late (x int)",
    "SET ROLE messenger",
    "GRANT messenger TO messenger_api_1",
    "ALTER ROLE messenger_api_1 SUPERUSER",
    "UPDATE alembic_version SET version_num = '0001'",
)


class Production(NamedTuple):
    """Three servers, and how each of our processes signs in."""

    owner_url: str
    api_url: str
    stranger_url: str
    nats: Nats
    store: S3
    authority: Authority
    log: Path

    @property
    def access(self) -> Access:
        return Access(ca=self.authority.ca)


@pytest.fixture(scope="module")
async def at(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Production]:
    directory = tmp_path_factory.mktemp("production")
    authority = Authority(directory / "certificates", "ours")
    certificate = authority.sign("server")
    async with (
        AsyncExitStack() as stack,
        guarded.postgresql(directory) as server,
        guarded.nats(directory, certificate) as nats,
        guarded.objects(directory, certificate) as store,
    ):
        url = stack.enter_context(guarded.tls_door(server, certificate))
        owner_url = f"{url}?sslmode=verify-full&sslrootcert={authority.ca}"
        migrate.upgrade(owner_url)
        _make_roles(owner_url)
        urls = [_as(owner_url, name) for name in ("messenger_api_1", "stranger")]
        yield Production(owner_url, *urls, nats, store, authority, server.log.path)


def _make_roles(owner_url: str) -> None:
    with psycopg.connect(owner_url, autocommit=True) as owner:
        for _ in range(2):  # as often as you like
            owner.execute(ROLES.read_bytes())
        for statement in SIGN_INS:
            owner.execute(statement.encode())


def _as(url: str, role: str) -> str:
    host = urlsplit(url).netloc.rpartition("@")[2]
    return urlsplit(url)._replace(netloc=f"{role}:{API_PASSWORD}@{host}").geturl()


@pytest.fixture
def as_api(at: Production) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(at.api_url, autocommit=True) as connection:
        yield connection


@asynccontextmanager
async def api_process(at: Production) -> AsyncIterator[str]:
    """`messenger api` in production form; its URL."""
    port = free_port()
    environ = {
        **os.environ,
        "MESSENGER_ENV": "production",
        "MESSENGER_SECRET": SECRET_TEXT,
        "MESSENGER_DATABASE_URL": at.api_url,
        "MESSENGER_NATS_URL": at.nats.reader_url,
        "MESSENGER_NATS_CA": str(at.authority.ca),
        "MESSENGER_S3_ENDPOINT": at.store.endpoint,
        "MESSENGER_S3_ACCESS_KEY": at.store.access_key,
        "MESSENGER_S3_SECRET_KEY": at.store.secret_key,
        "MESSENGER_S3_CA": str(at.authority.ca),
        "MESSENGER_PRESENCE_GRACE_SECONDS": "0",
    }
    command = (sys.executable, "-m", "api.cli", "api", "--port", str(port))
    process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=PIPE, stderr=PIPE)
    said = asyncio.create_task(process.communicate())
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient() as client:

            async def is_ready() -> bool:
                assert process.returncode is None, (await said)[1].decode()
                try:
                    return (await client.get(f"{url}/health/ready")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(is_ready, "the API is ready", TIMEOUT_SECONDS)
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        spoken = b"".join(await asyncio.wait_for(said, TIMEOUT_SECONDS))
        assert b"Traceback" not in spoken, spoken.decode()


@asynccontextmanager
async def daemons(at: Production) -> AsyncIterator[Keyring]:
    """Relay and projectors, with the owner's rights in PostgreSQL and their own in NATS."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(database.pool(at.owner_url, name="keys", size=2))
        keys = Keyring(Secret(SECRET_TEXT.encode()), pool)
        relay_bus, bus = [
            await stack.enter_async_context(Bus(url, name="test", access=at.access))
            for url in (at.nats.relay_url, at.nats.reader_url)
        ]
        work = [Relay(at.owner_url, relay_bus, LOGGER).run()]
        for one in PROJECTIONS:
            projector = Projector(
                one, database_url=at.owner_url, keyring=keys, bus=bus, logger=LOGGER
            )
            work.append(projector.run())
        await stack.enter_async_context(tasks(*work))
        yield keys


class Person:
    """Signed in; `do` is a command, `see` a query that waits for what was done."""

    def __init__(self, client: httpx.AsyncClient, user_id: str, session: Json) -> None:
        self.client = client
        self.user_id = user_id
        self.session = session
        self.position = 0

    async def do(self, name: str, /, **data: Any) -> Json:
        sent = await self.client.post(
            f"/v1/commands/{name}", json=data, headers=bearer(self.session)
        )
        done = good(sent)
        self.position = max(self.position, done["position"])
        return done

    async def see(self, path: str) -> Json:
        headers = {**bearer(self.session), "Min-Log-Position": str(self.position)}
        return good(await self.client.get(path, headers=headers))


async def _person(client: httpx.AsyncClient, username: str) -> Person:
    body = {"username": username, "password": PASSWORD}
    user = good(await client.post("/v1/commands/register-user", json=body))
    session = good(await client.post("/v1/sessions", json=body), 201)
    return Person(client, user["user_id"], session)


async def test_a_whole_api_works_under_the_role_with_tls_everywhere(at: Production) -> None:
    of_others = len(at.log.read_text())
    async with (
        daemons(at) as keys,
        api_process(at) as url,
        httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS) as client,
    ):
        ann, bob, eve = [await _person(client, name) for name in ("ann", "bob", "eve")]
        await _talk(ann, bob)
        await _sign_in_and_out(ann)
        async with connected(url, ann.session["access_token"]) as stream:
            await stream.start()
            said = await stream.command("set-status", status="away")
            assert said["op"] == "result"
            position = (await _group_with_image(ann, bob, eve))["position"]
            await stream.reached(position)
            await stream.say("received", position=position)
        for name in ("users", "messages", "search", "users", "messages", "search"):
            # Once more, and what is put aside is what a replay made.
            await replay.replay(
                BY_NAME[name], url=at.owner_url, keyring=keys, progress=lambda *_: None
            )
        await bob.do("delete-account", password=PASSWORD, erase_messages=True)
        ann.position = good(await client.get("/v1/status"))["position"]
        people = await ann.see("/v1/state")
        assert people["unread"] is not None
        gone = await client.get("/v1/users/me", headers=bearer(bob.session))
        problem(gone, 401, "unauthenticated")
    _check_erased(at, bob.user_id)
    said = at.log.read_text()[of_others:].splitlines()
    assert [line for line in said if "permission denied" in line] == []


async def _talk(ann: Person, bob: Person) -> None:
    await ann.do("request-contact", user_id=bob.user_id)
    await bob.do("accept-contact", user_id=ann.user_id)
    chat_id = (await ann.do("open-direct-chat", user_id=bob.user_id))["chat_id"]
    sent = await bob.do("send-message", chat_id=chat_id, content="The cards are in order")
    message_id = sent["message_id"]
    await bob.do("edit-message", message_id=message_id, content="The punched cards are in order")
    await ann.do("add-reaction", message_id=message_id, emoji="👍")
    await ann.do("mark-read", chat_id=chat_id)
    ann.position = max(ann.position, bob.position)
    found = await ann.see("/v1/search/messages?q=punched")
    assert [item["message"]["id"] for item in found["items"]] == [message_id]
    assert (await ann.see("/v1/unread"))["messages"] == 0
    assert len((await ann.see("/v1/chats"))["items"]) == 1


async def _sign_in_and_out(ann: Person) -> None:
    wrong = {"username": "ann", "password": "not that one"}
    problem(await ann.client.post("/v1/sessions", json=wrong), 401, "wrong-credentials")
    refresh = {"refresh_token": ann.session["refresh_token"]}
    ann.session = good(await ann.client.post("/v1/sessions/refresh", json=refresh))
    right = {"username": "ann", "password": PASSWORD}
    other = good(await ann.client.post("/v1/sessions", json=right), 201)
    ended = await ann.client.delete("/v1/sessions/current", headers=bearer(other))
    assert ended.status_code == 204
    assert len((await ann.see("/v1/sessions"))["items"]) == 1


async def _group_with_image(ann: Person, *others: Person) -> Json:
    ids = [other.user_id for other in others]
    group = await ann.do("create-group", name="Engines", member_ids=ids)
    message_id = "00000000-0000-7000-8000-000000000001"
    fields = {"chat_id": group["chat_id"], "message_id": message_id}
    image = {"file": ("cat.png", pictures.encoded(pictures.quarters(64, 64), "PNG"))}
    uploaded = await ann.client.post(
        "/v1/attachments", data=fields, files=image, headers=bearer(ann.session)
    )
    attachment_id = good(uploaded, 201)["attachment_id"]
    return await ann.do("send-message", content="", attachment_ids=[attachment_id], **fields)


def _check_erased(at: Production, user_id: str) -> None:
    """Also in what the replays put aside."""
    with psycopg.connect(at.owner_url) as owner:
        names = owner.execute("SELECT username FROM retired_users.users").fetchall()
        assert ("bob",) not in names
        assert ("eve",) in names
        finished = "SELECT count(*) FROM erased_keys WHERE user_id = %s AND finished_at IS NOT NULL"
        assert owner.execute(finished, (user_id,)).fetchone() == (2,)


async def test_the_role_is_let_at_copies_that_were_made_before_it(at: Production) -> None:
    change = "UPDATE retired_users_9.users SET username = NULL"
    with (
        psycopg.connect(at.owner_url, autocommit=True) as owner,
        psycopg.connect(at.api_url, autocommit=True) as api,
    ):
        owner.execute("CREATE SCHEMA retired_users_9")
        owner.execute("CREATE TABLE retired_users_9.users (LIKE public.users)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            api.execute(change)
        owner.execute(ROLES.read_bytes())
        api.execute(change)
        owner.execute("DROP SCHEMA retired_users_9 CASCADE")


def test_what_is_the_owner_s_alone_is_said_in_a_line(at: Production) -> None:
    environ = {**os.environ, "MESSENGER_SECRET": SECRET_TEXT, "MESSENGER_DATABASE_URL": at.api_url}
    environ |= {"MESSENGER_NATS_URL": at.nats.reader_url}
    for arguments in (("verify",), ("replay", "users")):
        command = [sys.executable, "-m", "api.cli", *arguments]
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("messenger: the database allows it to its owner alone: permission")
        assert "Traceback" not in done.stderr


async def test_the_role_sees_when_processes_of_others_were_last_heard(at: Production) -> None:
    name = database.process_name("relay")
    async with (
        await database.connect(at.owner_url, name=name),
        await database.connect(at.api_url, name="test") as as_api,
    ):
        seen = await processes.sight(as_api)
    [(connected_seconds, heard_seconds)] = [
        rest for shown, *rest in seen.connected if shown == f"messenger {name}"
    ]
    assert connected_seconds is not None
    assert heard_seconds is not None


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_the_role_can_not_do_what_touches_the_log_or_its_guards(
    as_api: psycopg.Connection[Any], statement: str
) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), as_api.transaction():
        as_api.execute(statement.encode())


@pytest.mark.parametrize("table", ["skipped_events", "imports"])
def test_the_role_reads_what_operators_decided(
    as_api: psycopg.Connection[Any], table: LiteralString
) -> None:
    assert as_api.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_of_the_secrets_the_role_sees_those_of_former_houses_alone(
    at: Production, as_api: psycopg.Connection[Any]
) -> None:
    former = b"wrapped"
    with psycopg.connect(at.owner_url, autocommit=True) as owner:
        keep = "INSERT INTO instance_secrets (name, value) VALUES (%s, %s) ON CONFLICT DO NOTHING"
        for name in ("messenger", "former house"):
            owner.execute(keep, (name, former))
        query = "SELECT name, value FROM instance_secrets ORDER BY name"
        try:
            assert len(owner.execute(query).fetchall()) == 2
            assert as_api.execute(query).fetchall() == [("former house", former)]
        finally:
            owner.execute("DELETE FROM instance_secrets")


async def test_only_the_append_function_lets_it_into_the_log(at: Production) -> None:
    async with Appender(at.api_url, queue_limit=10) as appender:
        stream = f"probe-{os.urandom(8).hex()}"
        outcome = await appender.append(written(stream, "probed", b"{}"))
    assert outcome.verdict == "appended"
    with psycopg.connect(at.api_url) as connection:
        query = "SELECT stream FROM event_log WHERE position = %s"
        assert connection.execute(query, (outcome.position,)).fetchone() == (stream,)


def test_no_table_of_its_own_stands_in_for_one_of_the_log(at: Production) -> None:
    """The function runs with the owner's rights: on what it finds by name, it must be the real."""
    with psycopg.connect(at.api_url, autocommit=True) as connection:
        head = "SELECT position FROM public.log_head"
        before = connection.execute(head).fetchone()
        connection.execute("CREATE TEMPORARY TABLE log_head (position bigint)")
        connection.execute("INSERT INTO pg_temp.log_head VALUES (7000)")
        connection.execute("SET search_path = pg_temp, public")
        row = connection.execute(NOTHING).fetchone()
        assert row is not None
        assert row[:2] == ("appended", before and before[0])


# One command without an event: it is answered with the head.
NOTHING = """
    SELECT verdict, last_position
    FROM public.append_v1(
        '{}', '{0}', '{}', '{}', '{0}', '{}', '[]',
        '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{}', '{}', '{}', '{}', '{}'
    )
"""


def test_who_has_no_part_in_it_sees_and_appends_nothing(at: Production) -> None:
    with psycopg.connect(at.stranger_url, autocommit=True) as stranger:
        for statement in (NOTHING, "SELECT position FROM event_log", "SELECT id FROM messages"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                stranger.execute(statement.encode())


def test_the_log_is_append_only_for_its_owner_too(at: Production) -> None:
    with psycopg.connect(at.owner_url, autocommit=True) as owner:
        for statement in ("UPDATE event_log SET type = 'x'", "TRUNCATE event_log"):
            with pytest.raises(psycopg.DatabaseError, match="append-only"):
                owner.execute(statement.encode())
