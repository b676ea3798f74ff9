"""`messenger api` as a process: it starts, stops cleanly, and shares all that counts."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec

from infra.embedded.process import free_port
from tests.api import process
from tests.api.served import (
    ENDED_WITHIN_SECONDS,
    PASSWORD,
    bearer,
    good,
    problem,
    refused_within,
)

STOP_SECONDS = 60.0


async def test_it_stops_on_a_signal_and_answers_what_it_was_asked_before(
    database_url: str, nats_url: str
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        body = msgspec.json.encode({"username": number.name, "password": PASSWORD})
        path = "/v1/commands/register-user"
        async with (
            process.running(database_url, nats_url) as api,
            half_asked(api, path, len(body)) as (reader, writer),
        ):
            api.process.send_signal(number)
            writer.write(body)
            async with asyncio.timeout(STOP_SECONDS):
                answered = await reader.read()
                _, said = await api.process.communicate()
            assert b"HTTP/1.1 200 " in answered
            assert api.process.returncode == 0, said
            assert b"Traceback" not in said


@asynccontextmanager
async def half_asked(
    api: process.ApiProcess, path: str, body_bytes: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A request that is known to be under way: the process has asked for its body."""
    address = httpx.URL(api.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Expect: 100-continue\r\nContent-Length: {body_bytes}\r\n\r\n".encode()
    )
    try:
        async with asyncio.timeout(process.ANSWER_SECONDS):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        yield reader, writer
    finally:
        writer.close()


async def test_a_silent_client_does_not_keep_it_from_stopping(
    database_url: str, nats_url: str
) -> None:
    async with (
        process.running(database_url, nats_url) as api,
        half_asked(api, "/v1/sessions", body_bytes=9),
    ):
        api.process.terminate()
        await asyncio.wait_for(api.process.communicate(), STOP_SECONDS)
        assert api.process.returncode == 0


async def test_without_a_database_it_says_so_in_one_line(nats_url: str) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    try:
        async with process.running(url, nats_url):
            raise RuntimeError("it started")
    except AssertionError as error:
        said = str(error)
    assert said.count("\n") == 1, said
    assert "the database does not answer" in said


async def test_a_session_ended_in_one_process_ends_in_the_other(
    database_url: str, nats_url: str
) -> None:
    async with (
        process.running(database_url, nats_url) as one,
        process.running(database_url, nats_url) as two,
        process.asking() as client,
    ):
        account = {"username": "ann", "password": PASSWORD}
        good(await client.post(f"{one.url}/v1/commands/register-user", json=account))
        session = good(await client.post(f"{one.url}/v1/sessions", json=account), 201)
        good(await client.get(f"{two.url}/v1/sessions", headers=bearer(session)))
        path = f"{two.url}/v1/sessions/current"
        assert (await client.delete(path, headers=bearer(session))).status_code == 204

        asked = f"{one.url}/v1/sessions"
        await refused_within(client, asked, bearer(session), ENDED_WITHIN_SECONDS)


async def test_a_killed_process_loses_nothing_that_it_acknowledged(
    database_url: str, nats_url: str
) -> None:
    acknowledged: list[str] = []

    async def register_all(client: httpx.AsyncClient) -> None:
        for n in range(10_000):
            account = {"username": f"user{n}", "password": PASSWORD}
            response = await client.post("/v1/commands/register-user", json=account)
            acknowledged.append(good(response)["user_id"])

    async with (
        process.running(database_url, nats_url) as killed,
        process.asking(killed.url) as client,
    ):
        registering = asyncio.create_task(register_all(client))
        while len(acknowledged) < 20 and not registering.done():
            await asyncio.sleep(0.005)
        killed.process.kill()
        await asyncio.gather(registering, return_exceptions=True)
    async with (
        process.running(database_url, nats_url) as api,
        process.asking(api.url) as client,
    ):
        for n in range(len(acknowledged)):
            account = {"username": f"user{n}", "password": PASSWORD}
            session = good(await client.post("/v1/sessions", json=account), 201)
            assert session["user_id"] == acknowledged[n]
        taken = {"username": "user0", "password": PASSWORD}
        again = await client.post("/v1/commands/register-user", json=taken)
        problem(again, 409, "username-taken")
