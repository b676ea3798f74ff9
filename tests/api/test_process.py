"""`messenger api` as a process: it starts, stops cleanly, and shares all that counts."""

import asyncio
import signal
import socket
import time

import httpx

from infra.embedded.process import free_port
from tests.api import process
from tests.api.served import PASSWORD, bearer, good, problem
from tests.infra.daemons import until

STOP_SECONDS = 5.0


async def test_it_stops_on_a_signal_and_answers_what_it_was_asked_before(
    database_url: str, nats_url: str
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        async with (
            process.running(database_url, nats_url) as api,
            httpx.AsyncClient(base_url=api.url) as client,
        ):
            asked = asyncio.create_task(client.get("/v1/status"))
            await asyncio.sleep(0.05)
            api.process.send_signal(number)
            assert good(await asked)["position"] == 0
            began = time.monotonic()
            _, said = await asyncio.wait_for(api.process.communicate(), STOP_SECONDS)
            assert api.process.returncode == 0, said
            assert b"Traceback" not in said
            assert time.monotonic() - began < STOP_SECONDS


async def test_a_silent_client_does_not_keep_it_from_stopping(
    database_url: str, nats_url: str
) -> None:
    async with process.running(database_url, nats_url) as api:
        host, port = "127.0.0.1", int(api.url.rpartition(":")[2])
        with socket.create_connection((host, port)) as silent:
            silent.sendall(b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            await asyncio.sleep(0.2)
            api.process.terminate()
            await asyncio.wait_for(api.process.communicate(), 2 * STOP_SECONDS)
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
        httpx.AsyncClient() as client,
    ):
        account = {"username": "ann", "password": PASSWORD}
        good(await client.post(f"{one.url}/v1/commands/register-user", json=account))
        session = good(await client.post(f"{one.url}/v1/sessions", json=account), 201)
        good(await client.get(f"{two.url}/v1/sessions", headers=bearer(session)))
        path = f"{two.url}/v1/sessions/current"
        assert (await client.delete(path, headers=bearer(session))).status_code == 204

        async def is_refused() -> bool:
            seen = await client.get(f"{one.url}/v1/sessions", headers=bearer(session))
            return seen.status_code == 401

        await until(is_refused, "the session has ended in the other process", 1.0)


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
        httpx.AsyncClient(base_url=killed.url) as client,
    ):
        registering = asyncio.create_task(register_all(client))
        while len(acknowledged) < 20:
            await asyncio.sleep(0.005)
        killed.process.kill()
        await asyncio.gather(registering, return_exceptions=True)
    async with (
        process.running(database_url, nats_url) as api,
        httpx.AsyncClient(base_url=api.url) as client,
    ):
        for n in range(len(acknowledged)):
            account = {"username": f"user{n}", "password": PASSWORD}
            session = good(await client.post("/v1/sessions", json=account), 201)
            assert session["user_id"] == acknowledged[n]
        taken = {"username": "user0", "password": PASSWORD}
        again = await client.post("/v1/commands/register-user", json=taken)
        problem(again, 409, "username-taken")
