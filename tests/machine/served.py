"""The messenger as the machine meets it: two API processes' worth, projectors, five people.

A response is brought to the form that the model answers in: times become "there", and what
only a server can know (`chosen`) is kept apart.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import httpx

from infra import verify
from projections import PROJECTIONS
from tests.api.served import PASSWORD, Api, Json, bearer, serving
from tests.infra import daemons
from tests.machine.model import TIME

PROCESSES = 2
TIMEOUT_SECONDS = 20.0
MAX_READS_AT_ONCE = 16
ENDED_SECONDS = 60.0  # the second that it may take is for test_sessions to check
ENDED_POLL_SECONDS = 0.01
TIMES = (
    "created_at",
    "updated_at",
    "edited_at",
    "deleted_at",
    "joined_at",
    "accepted_at",
    "delivered_at",
    "read_at",
    "last_seen",
    "last_message_at",
)

SETTLED = """
    SELECT metadata ->> 'actor', min(position)
    FROM event_log
    WHERE position > %s AND metadata ->> 'command' = 'settle-deletion'
    GROUP BY metadata ->> 'actor'
"""

UNREAD_ROWS = """
    SELECT
        user_id::text,
        message_id::text
    FROM unread_messages
"""


class Sent(NamedTuple):
    """A command with who sends it, its key, and which process takes it."""

    actor: str | None
    name: str
    data: Json
    key: str | None
    process: int


class Heard(NamedTuple):
    status: int
    code: str | None
    body: Json
    position: int | None
    is_replayed: bool


class World:
    """Everything runs in one database; a token is good for every process."""

    def __init__(self, url: str, nats_url: str, apis: list[Api]) -> None:
        self.url = url
        self.nats_url = nats_url
        self._apis = apis
        self._headers: dict[str | None, dict[str, str]] = {None: {}}
        self._reads = asyncio.Semaphore(MAX_READS_AT_ONCE)

    async def log_in(self, user_id: str, username: str, password: str = PASSWORD) -> None:
        self._headers[user_id] = bearer(await self._apis[0].log_in(username, password))

    async def send(self, sent: Sent) -> Heard:
        headers = dict(self._headers[sent.actor])
        if sent.key:
            headers["Idempotency-Key"] = sent.key
        client = self._apis[sent.process].client
        heard = _heard(
            await client.post(f"/v1/commands/{sent.name}", json=sent.data, headers=headers)
        )
        await self._until_known([sent], [heard])
        return heard

    async def _until_known(self, some: list[Sent], heard: list[Heard]) -> None:
        """An ended session may work for a second more in the other processes (contract.md,
        section 3), and the model knows no such second."""
        for sent, answer in zip(some, heard, strict=True):
            if sent.name == "delete-account" and answer.status == 200:
                async with asyncio.timeout(ENDED_SECONDS):
                    for api in self._apis:
                        while await self._is_known(api, sent.actor):
                            await asyncio.sleep(ENDED_POLL_SECONDS)

    async def _is_known(self, api: Api, actor: str | None) -> bool:
        response = await api.client.get("/v1/sessions", headers=self._headers[actor])
        return response.status_code != 401

    async def send_all(self, some: list[Sent]) -> list[Heard]:
        return list(await asyncio.gather(*(self.send(sent) for sent in some)))

    async def send_batch(self, some: list[Sent]) -> list[Heard]:
        """All of one actor to one process."""
        commands = [
            {"name": sent.name, "data": sent.data}
            | ({"idempotency_key": sent.key} if sent.key else {})
            for sent in some
        ]
        response = await self._apis[some[0].process].client.post(
            "/v1/commands", json={"commands": commands}, headers=self._headers[some[0].actor]
        )
        if response.status_code == 401:
            return [_heard(response)] * len(some)
        assert response.status_code == 200, response.text
        heard = [_heard_in_batch(result) for result in response.json()["results"]]
        await self._until_known(some, heard)
        return heard

    async def see(self, user_id: str, path: str, after: int, process: int = 0) -> Any:
        """What a query answers once the read models are there; the code of a refusal."""
        headers = self._headers[user_id] | {"Min-Log-Position": str(after)}
        async with self._reads:
            response = await self._apis[process].client.get(path, headers=headers)
        body = response.json()
        return plain(body) if response.status_code == 200 else body["code"]

    async def unread_rows(self) -> set[tuple[str, str]]:
        async with daemons.connected(self.url) as connection:
            return set(await (await connection.execute(UNREAD_ROWS)).fetchall())

    async def settled(self, after: int) -> dict[str, int]:
        """At which position what followed from the deletion of whose account."""
        async with daemons.connected(self.url) as connection:
            rows = await (await connection.execute(SETTLED, (after,))).fetchall()
        return dict(rows)

    async def check_rebuilt(self, head: int) -> None:
        """What `messenger verify` does: rebuilt tables equal the live ones."""
        async with daemons.keyring(self.url) as keys:
            for projection in PROJECTIONS:
                verdict = await verify.verify(
                    projection, url=self.url, keyring=keys, progress=lambda *_: None
                )
                assert verdict.differing == 0, verdict.shown
                assert verdict.position >= head


def plain(value: Any) -> Any:
    """Times are there or not, and come in the contract's form."""
    match value:
        case dict():
            return {name: _time(name, one) for name, one in value.items()}
        case list():
            return [plain(one) for one in value]
        case _:
            return value


def _time(name: str, value: Any) -> Any:
    if name not in TIMES or value is None:
        return plain(value)
    assert value.endswith("Z"), f"{name} is {value}"
    return TIME


def _heard(response: httpx.Response) -> Heard:
    body = response.json()
    if response.status_code != 200:
        assert response.headers["content-type"] == "application/problem+json", response.text
        return Heard(response.status_code, body["code"], body, None, False)
    position = body.pop("position")
    assert response.headers["Log-Position"] == str(position)
    is_replayed = response.headers.get("Idempotency-Replayed") == "true"
    return Heard(200, None, body, position, is_replayed)


def _heard_in_batch(result: Json) -> Heard:
    if "problem" in result:
        problem = result["problem"]
        return Heard(problem["status"], problem["code"], problem, None, False)
    is_replayed = result.pop("idempotency_replayed", False)
    return Heard(200, None, result, result.pop("position"), is_replayed)


@asynccontextmanager
async def running(url: str, nats_url: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        await enter(daemons.relaying(url, nats_url))
        await enter(daemons.projecting(url, nats_url))
        apis = [await enter(serving(url, nats_url, rate_limits=False)) for _ in range(PROCESSES)]
        yield World(url, nats_url, apis)
