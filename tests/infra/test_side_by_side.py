"""The code of before the last migration and that of today on one database, while it is migrated.

The earlier code comes from the history of the clone; where that does not reach so far, the code
of today stands for it, on the database as it has it.
"""

import asyncio
import io
import subprocess
import sys
import tarfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from alembic.script import ScriptDirectory

from infra import migrate
from tests.api import process
from tests.api.served import PASSWORD, Json, bearer, good
from tests.infra.daemons import check, copied, projected, projecting, relaying, until

ROOT = Path(__file__).parent.parent.parent
STEADY_SECONDS = 1.0
PAUSE_SECONDS = 0.01
STOP_SECONDS = 60.0
TIMEOUT_SECONDS = 60.0


class Earlier(NamedTuple):
    """Code, and the revision of the database that it was written for."""

    code: Path
    revision: str


@pytest.fixture
def earlier(tmp_path: Path) -> Earlier:
    scripts = ScriptDirectory(str(migrate.DIRECTORY))
    last = scripts.get_revision(str(scripts.get_current_head()))
    commit = _commit_before(Path(last.path))
    if commit is None:
        return Earlier(ROOT, last.revision)
    archive = _git("archive", "--format=tar", commit)
    assert archive is not None
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(tmp_path, filter="data")
    return Earlier(tmp_path, str(last.down_revision))


def _commit_before(migration: Path) -> str | None:
    """The one on which the migration was made; None if the history does not go back so far."""
    path = str(migration.relative_to(ROOT))
    added = _git("log", "--diff-filter=A", "--format=%H", "-1", "--", path)
    if added is None:
        return None
    # Not yet committed: it was made on what is.
    parent = f"{added.decode().strip()}^" if added.strip() else "HEAD"
    found = _git("rev-parse", "--verify", "--quiet", f"{parent}^{{commit}}")
    return found.decode().strip() if found else None


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


class Talk:
    """Says one thing after the other, and reads each back; `said` is what was acknowledged."""

    def __init__(self, client: httpx.AsyncClient, headers: dict[str, str], chat_id: str) -> None:
        self._client = client
        self._headers = headers
        self._chat_id = chat_id
        self.said: list[str] = []

    async def run(self) -> None:
        while True:
            await self.say()
            await asyncio.sleep(PAUSE_SECONDS)

    async def say(self) -> None:
        body = {"chat_id": self._chat_id, "content": f"number {len(self.said)}"}
        sent = good(await self._post("send-message", body))
        self.said.append(sent["message_id"])
        newest = good(await self._get(f"/v1/chats/{self._chat_id}/messages", sent["position"]))
        assert sent["message_id"] in [message["id"] for message in newest["items"]]

    async def _post(self, name: str, body: Json) -> httpx.Response:
        return await self._client.post(f"/v1/commands/{name}", json=body, headers=self._headers)

    async def _get(self, path: str, position: int) -> httpx.Response:
        headers = {**self._headers, "Min-Log-Position": str(position)}
        return await self._client.get(path, headers=headers)


async def test_both_serve_while_the_database_is_migrated_and_after(
    database_url: str, nats_url: str, earlier: Earlier
) -> None:
    migrate.downgrade(database_url, earlier.revision)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(projectors(earlier.code, database_url, nats_url))
        old = await _client(stack, database_url, nats_url, earlier.code)
        headers, chat_id = await _chat(old)
        await projected(database_url)  # whoever projects has started
        talks = [Talk(old, headers, chat_id)]
        running = [asyncio.create_task(talks[0].run())]
        await asyncio.sleep(STEADY_SECONDS)
        await asyncio.to_thread(migrate.upgrade, database_url)
        new = await _client(stack, database_url, nats_url, ROOT)
        talks.append(Talk(new, headers, chat_id))
        running.append(asyncio.create_task(talks[1].run()))

        async def is_enough() -> bool:
            return any(task.done() for task in running) or all(len(talk.said) > 1 for talk in talks)

        await asyncio.wait(running, timeout=STEADY_SECONDS)
        await until(is_enough, "both have said more than one thing")
        failures = [task.exception() for task in running if task.done()]
        for task in running:
            task.cancel()
        assert failures == []
    async with relaying(database_url, nats_url), projecting(database_url, nats_url):
        await projected(database_url)
        await copied(database_url, nats_url)
        await check(database_url, nats_url)
    migrate.check(database_url)


async def _client(
    stack: AsyncExitStack, database_url: str, nats_url: str, code: Path
) -> httpx.AsyncClient:
    api = await stack.enter_async_context(process.running(database_url, nats_url, code=code))
    client = httpx.AsyncClient(base_url=api.url, timeout=TIMEOUT_SECONDS)
    return await stack.enter_async_context(client)


async def _chat(client: httpx.AsyncClient) -> tuple[dict[str, str], str]:
    """Ann's headers, and her chat with Bob."""
    ids = {}
    for username in ("ann", "bob"):
        person = {"username": username, "password": PASSWORD}
        ids[username] = good(await client.post("/v1/commands/register-user", json=person))
    login = {"username": "ann", "password": PASSWORD}
    headers = bearer(good(await client.post("/v1/sessions", json=login), 201))
    group = {"name": "Friends", "member_ids": [ids["bob"]["user_id"]]}
    made = good(await client.post("/v1/commands/create-group", json=group, headers=headers))
    return headers, made["chat_id"]


@asynccontextmanager
async def projectors(code: Path, database_url: str, nats_url: str) -> AsyncIterator[None]:
    projecting = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.cli", "project", "--all"),
        env=process.environ(database_url, nats_url),
        cwd=code,
        stderr=PIPE,
    )
    try:
        yield
        assert projecting.returncode is None
    finally:
        if projecting.returncode is None:
            projecting.terminate()
        await asyncio.wait_for(projecting.communicate(), STOP_SECONDS)
