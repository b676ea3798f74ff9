"""The API as tests meet it: served by uvicorn on a free port, spoken to with httpx."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec

from api.app import Server, config, create_app
from api.parts import Parts, opened
from api.stream import stream
from api.stream.stream import Stream
from infra.embedded.s3 import S3
from infra.ending import end
from infra.settings import Settings, load
from tests.infra.daemons import projecting
from tests.infra.machines import SECRET_TEXT

PASSWORD = "correct horse"
# Nobody listens there: what needs no object store does not miss it.
NO_STORE = "http://127.0.0.1:1"
# Nothing is judged by these: the machine may be busy with other things.
TIMEOUT_SECONDS = 60.0
READ_WAIT_SECONDS = 30
START_POLL_SECONDS = 0.01
REFUSED_POLL_SECONDS = 0.02
# Until every API process knows that a session has ended (contract.md, section 3).
ENDED_WITHIN_SECONDS = 1.0

Json = dict[str, Any]


class TestServer(Server):
    """Signals are the test run's, not its."""

    __test__ = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Person(NamedTuple):
    """A signed-in user with their own client."""

    client: httpx.AsyncClient
    user_id: str
    username: str
    session: Json

    async def send(self, name: str, key: str | None = None, /, **data: Any) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        return await self.client.post(f"/v1/commands/{name}", json=data, headers=headers)

    async def do(self, name: str, /, **data: Any) -> Json:
        return good(await self.send(name, **data))

    async def see(self, path: str, after: int = 0, /, **parameters: Any) -> Json:
        return good(await self.look(path, after, **parameters))

    async def look(self, path: str, after: int = 0, /, **parameters: Any) -> httpx.Response:
        """A query that waits for a position first."""
        headers = {"Min-Log-Position": str(after)}
        return await self.client.get(path, params=parameters, headers=headers)


class Api(NamedTuple):
    """One served API process's insides and its address."""

    parts: Parts
    url: str
    client: httpx.AsyncClient
    stack: AsyncExitStack
    live: Stream
    server: TestServer

    async def register(self, username: str, **fields: Any) -> Json:
        body = {"username": username, "password": PASSWORD, **fields}
        return good(await self.client.post("/v1/commands/register-user", json=body))

    async def log_in(self, username: str, password: str = PASSWORD, **fields: Any) -> Json:
        body = {"username": username, "password": password, **fields}
        return good(await self.client.post("/v1/sessions", json=body), 201)

    async def person(self, username: str, **fields: Any) -> Person:
        await self.register(username, **fields)
        return await self.signed_in(username)

    async def signed_in(self, username: str) -> Person:
        session = await self.log_in(username)
        client = await self.stack.enter_async_context(
            httpx.AsyncClient(base_url=self.url, timeout=TIMEOUT_SECONDS, headers=bearer(session))
        )
        return Person(client, session["user_id"], username, session)


def bearer(session: Json) -> dict[str, str]:
    return {"Authorization": f"Bearer {session['access_token']}"}


def good(response: httpx.Response, status: int = 200) -> Json:
    assert response.status_code == status, response.text
    answer: Json = response.json()
    return answer


def problem(response: httpx.Response, status: int, code: str) -> Json:
    """The response is this problem, in the contract's form."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    body: Json = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code), body
    assert set(body) - {"errors"} == {"type", "title", "status", "detail", "code"}
    assert response.headers["request-id"]
    return body


async def refused_within(
    client: httpx.AsyncClient, path: str, headers: dict[str, str], seconds: float
) -> None:
    """From so many seconds on whoever asks is refused, however long the answer then takes."""
    deadline = time.monotonic() + seconds
    asked_at = time.monotonic()
    while (response := await client.get(path, headers=headers)).status_code == 200:
        assert asked_at < deadline, "the session still works"
        await asyncio.sleep(REFUSED_POLL_SECONDS)
        asked_at = time.monotonic()
    problem(response, 401, "unauthenticated")


def settings(database_url: str, nats_url: str, **changed: Any) -> Settings:
    environ = {
        "MESSENGER_ENV": "test",
        "MESSENGER_BCRYPT_ROUNDS": "4",
        "MESSENGER_DATABASE_URL": database_url,
        "MESSENGER_NATS_URL": nats_url,
        "MESSENGER_S3_ENDPOINT": NO_STORE,
        "MESSENGER_S3_ACCESS_KEY": "access",
        "MESSENGER_S3_SECRET_KEY": "secret",
        "MESSENGER_READ_WAIT_SECONDS": str(READ_WAIT_SECONDS),
        "MESSENGER_LOG_LEVEL": "error",
    }
    loaded = load(environ, Path("/nowhere"))
    return msgspec.structs.replace(loaded, **({"secret": SECRET_TEXT} | changed))


def stored_in(server: S3) -> dict[str, str]:
    """Settings."""
    return {
        "s3_endpoint": server.endpoint,
        "s3_access_key": server.access_key,
        "s3_secret_key": server.secret_key,
    }


@asynccontextmanager
async def serving(database_url: str, nats_url: str, **changed: Any) -> AsyncIterator[Api]:
    """One process's worth of API; `changed` are settings."""
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(opened(settings(database_url, nats_url, **changed)))
        live = await stack.enter_async_context(stream.opened(parts))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        # asyncio alone would not: each answer would wait 40 ms for the client's acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = TestServer(config(create_app(parts, live), host="127.0.0.1", port=0))
        running = asyncio.create_task(server.serve([listener]))
        stack.push_async_callback(_stop, server, running)
        while not server.started:
            await asyncio.sleep(START_POLL_SECONDS)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS)
        )
        yield Api(parts, url, client, stack, live, server)


@asynccontextmanager
async def serving_all(database_url: str, nats_url: str, **changed: Any) -> AsyncIterator[Api]:
    """With the projectors that the queries need."""
    async with (
        projecting(database_url, nats_url),
        serving(database_url, nats_url, **changed) as api,
    ):
        yield api


async def _stop(server: TestServer, running: "asyncio.Task[None]") -> None:
    server.should_exit = True
    await asyncio.wait([running], timeout=TIMEOUT_SECONDS)
    await end(running)
