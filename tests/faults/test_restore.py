"""PostgreSQL restored, as an operator does it: by base backup and write-ahead log to an earlier
point, while NATS and clients are ahead; and by a logical dump into an empty database."""

import asyncio
import json
import os
import re
import shutil
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

from infra import migrate
from infra.bus import Bus
from infra.embedded import postgres as embedded
from infra.embedded.postgres import Postgres
from infra.embedded.process import make_data_directory, while_running
from infra.history import REMEDY
from tests.api import conversations, process
from tests.api.conversations import direct
from tests.api.served import Json, Person, bearer, good, serving, serving_all
from tests.infra.daemons import check, copied, projected, projecting, relaying
from tests.infra.machines import PASSWORD
from tests.infra.test_replay import command, spawned
from tests.stream import client as streams

README = Path(__file__).parents[2] / "README.md"
STOP_SECONDS = 90.0
SERVED = {"rate_limits": "off"}

ARCHIVING = """
archive_mode = on
archive_command = 'cp %p {archive}/%f'
"""

RECOVERY = """
restore_command = 'cp {archive}/%f %p'
recovery_target_lsn = '{point}'
recovery_target_action = 'promote'
"""


class Archived:
    """A PostgreSQL that archives its write-ahead log, with a base backup."""

    def __init__(self, directory: Path) -> None:
        self.server = Postgres(directory, is_durable=False)
        self._cluster = self.server._cluster
        self._archive = directory / "archive"
        self._base = directory / "base"

    async def prepare(self) -> None:
        """While it does not run."""
        cluster = self._cluster
        await cluster.prepare()
        self._archive.mkdir()
        embedded._give(self._archive, cluster.identity)
        with (cluster.data / "postgresql.conf").open("a") as file:
            file.write(ARCHIVING.format(archive=self._archive))
        with (cluster.data / "pg_hba.conf").open("a") as file:
            file.write(embedded.HBA.replace("host all", "host replication"))
        allow = "ALTER ROLE messenger REPLICATION;\n"
        single = [*embedded.SINGLE_USER, "-D", str(cluster.data), "template1"]
        await cluster._run(single, text_in=allow)

    async def back_up(self) -> None:
        program = embedded._programs() / "pg_basebackup"
        arguments = ("-d", self.server.url, "-D", str(self._base), "-c", "fast", "-X", "none")
        await run(str(program), *arguments, "--no-sync")

    def point(self) -> str:
        with psycopg.connect(self.server.url) as connection:
            row = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
            assert row is not None
            return str(row[0])

    async def restore(self, point: str) -> None:
        """Stopped in order, it archives the last of its log."""
        await self.server.stop()
        data = self._cluster.data
        shutil.rmtree(data)
        self._base.rename(data)
        with (data / "postgresql.conf").open("a") as file:
            file.write(RECOVERY.format(archive=self._archive, point=point))
        (data / "recovery.signal").touch()
        embedded._give(data, self._cluster.identity)
        await self.server.start()


async def run(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(*arguments, stdout=PIPE, stderr=PIPE)
    _, said = await asyncio.wait_for(process.communicate(), STOP_SECONDS)
    assert process.returncode == 0, said.decode()


@pytest.fixture
async def archived(server_directory: Path) -> AsyncIterator[Archived]:
    directory = server_directory / "archived"
    make_data_directory(directory)
    made = Archived(directory)
    await made.prepare()
    try:
        async with while_running(made.server):
            migrate.upgrade(made.server.url)
            yield made
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[tuple[Person, streams.Client, int]]:
    """Somebody with a stream, and the position where it began."""
    async with httpx.AsyncClient(base_url=url, timeout=STOP_SECONDS) as http:
        body = {"username": "ann", "password": PASSWORD}
        good(await http.post("/v1/commands/register-user", json=body))
        session = good(await http.post("/v1/sessions", json=body), 201)
        http.headers.update(bearer(session))
        ann = Person(http, session["user_id"], "ann", session)
        async with streams.connected(url, session["access_token"]) as client:
            yield ann, client, (await client.start())["position"]


async def say(who: Person, name: str, times: int) -> int:
    """The position of the last of several changes."""
    for number in range(times):
        done = await who.do("update-profile", display_name=f"{name} {number}")
    return int(done["position"])


async def ended(process: Process) -> tuple[int, Json]:
    """The exit code and the last line of the log."""
    _, said = await asyncio.wait_for(process.communicate(), STOP_SECONDS)
    return process.returncode or 0, json.loads(said.splitlines()[-1])


async def test_restored_to_an_earlier_point_all_stop_with_a_line_until_a_new_epoch_begins(
    archived: Archived, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESSENGER_NATS_URL", nats_url)
    url = archived.server.url
    relay, projectors = await spawned(url, "relay"), await spawned(url, "project", "--all")
    async with process.running(url, nats_url, **SERVED) as api:
        async with listening(api.url) as (ann, client, begin):
            await archived.back_up()
            kept = await say(ann, "kept", 5)
            await projected(url)
            point = archived.point()
            lost = await say(ann, "lost", 5)
            await client.reached(lost)
            await projected(url)
            await copied(url, nats_url)
            await archived.restore(point)
            assert await client.close_code() in (1012, 1013)
        for one in (relay, projectors, api.process):
            code, line = await ended(one)
            assert (code, line["level"], line["event"]) == (1, "error", "process_ends"), line
            assert REMEDY in line["reason"]
    for arguments in (("relay",), ("project", "users")):
        code, _, said = await command(url, *arguments)
        assert (code, said.count(REMEDY)) == (1, 1), said
    code, out, said = await command(url, "log", "new-epoch")
    assert (code, out.rpartition(" ")[0]) == (0, "epoch 2 begins after position"), said
    assert kept <= int(out.rpartition(" ")[2]) < lost
    async with relaying(url, nats_url), serving_all(url, nats_url) as served:
        ann = await served.signed_in("ann")
        state = good(await ann.look("/v1/state", kept))
        for after, epoch in ((lost, 1), (kept, 1), (begin, 1)):
            async with streams.connected(served.url, ann.session["access_token"]) as client:
                again = await client.start(after=after, epoch=epoch)
                assert (again["resumed"], client.events) == (False, [])
        assert good(await ann.look("/v1/users/me", kept))["display_name"] == "kept 4"
        async with streams.connected(served.url, ann.session["access_token"]) as client:
            assert (await client.start(after=state["position"], epoch=2))["resumed"]
            done = await ann.do("update-profile", display_name="after")
            await client.reached(done["position"])
            assert client.positions == [done["position"]]
        await projected(url)
        await copied(url, nats_url)
    await check(url, nats_url)


async def test_a_logical_dump_restored_into_an_empty_database_just_works(
    database_url: str, empty_database_url: str, nats_url: str, tmp_path: Path
) -> None:
    programs, dump = embedded._programs(), str(tmp_path / "dump")
    async with relaying(database_url, nats_url), serving_all(database_url, nats_url) as api:
        ann = await api.person("ann")
        await say(ann, "before", 3)
        await projected(database_url)
        await run(str(programs / "pg_dump"), "-Fc", "-f", dump, database_url)
    restored = ("--no-owner", "-d", empty_database_url, dump)
    await run(str(programs / "pg_restore"), *restored)
    async with Bus(nats_url, name="test") as bus:
        await bus.delete_stream("EVENT_LOG_1")
    migrate.check(empty_database_url)
    url = empty_database_url
    async with (
        relaying(url, nats_url),
        projecting(url, nats_url),
        serving(url, nats_url) as api,
    ):
        ann = await api.signed_in("ann")
        await say(ann, "after", 3)
        await projected(url)
        await copied(url, nats_url)
        assert good(await ann.look("/v1/users/me"))["display_name"] == "after 2"
    assert (await check(url, nats_url)).head == 7


async def test_log_and_keys_backed_up_apart_as_the_readme_says_just_work(
    database_url: str, empty_database_url: str, nats_url: str, tmp_path: Path
) -> None:
    """All read models are empty then, and made anew."""
    async with relaying(database_url, nats_url), serving_all(database_url, nats_url) as api:
        ann, bob = await api.person("ann"), await api.person("bob")
        chat_id = await direct(ann, bob)
        await conversations.say(ann, chat_id, "one", "two")
        await projected(database_url)
    [block] = re.findall(
        r"^## Backing up$.*?^```sh$(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL
    )
    variables = {
        "MESSENGER_DATABASE_URL": database_url,
        "RESTORED_DATABASE_URL": empty_database_url,
        "PATH": f"{embedded._programs()}:{os.environ['PATH']}",
    }
    environ = [f"{name}={value}" for name, value in variables.items()]
    await run("env", *environ, "sh", "-e", "-c", f"cd {tmp_path}\n{block}")
    async with Bus(nats_url, name="test") as bus:
        await bus.delete_stream("EVENT_LOG_1")
    url = empty_database_url
    async with relaying(url, nats_url), serving_all(url, nats_url) as api:
        await projected(url)
        bob = await api.signed_in("bob")
        [sent] = await conversations.say(bob, chat_id, "three")
        [chat] = (await bob.see("/v1/chats", sent["position"]))["items"]
        assert (chat["id"], chat["unread_count"]) == (chat_id, 2)
        assert chat["last_message"]["content"] == "three"
        await projected(url)
        await copied(url, nats_url)
    await check(url, nats_url)
