"""Servers, or networks, that fall silent: nothing is refused and nothing ends, answers do not come."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import psycopg
import pytest

from infra import bus as buses
from infra import database
from infra.appender import Appender
from infra.bus import Bus
from tests.faults.cable import Cable, by_cable, target_of
from tests.infra.daemons import connected, log, until
from tests.infra.test_appender import ONE, QUEUE_LIMIT, append

GRACE_SECONDS = 0.3
WAIT_SECONDS = 30.0  # and less than is waited for a database that has not said how long


@pytest.fixture
async def cable(database_url: str) -> AsyncIterator[Cable]:
    async with Cable(lambda: target_of(database_url)).laid() as laid:
        yield laid


@pytest.fixture
def url(database_url: str, cable: Cable, monkeypatch: pytest.MonkeyPatch) -> str:
    """By the cable, and without much patience."""
    monkeypatch.setattr(database, "ANSWER_GRACE_SECONDS", GRACE_SECONDS)
    monkeypatch.setattr(database, "STATEMENT_TIMEOUT_MS", 1_000)
    return by_cable(database_url, cable.port)


async def test_a_connection_whose_server_falls_silent_is_given_up(url: str, cable: Cable) -> None:
    connection = await database.connect(url, name="test", statement_timeout_ms=500)
    cable.swallow()
    began = time.monotonic()
    with pytest.raises(psycopg.OperationalError, match="the database does not answer"):
        await connection.execute("SELECT 1")
    assert 0.5 < time.monotonic() - began < WAIT_SECONDS
    assert connection.closed


async def test_a_transaction_and_a_pipeline_end_with_their_connection(
    url: str, cable: Cable
) -> None:
    connection = await database.connect(url, name="test", statement_timeout_ms=500)

    async def transact() -> None:
        async with connection.transaction(), connection.pipeline():
            await connection.execute("SELECT 1")
            await connection.execute("SELECT 2")
            cable.swallow()

    with pytest.raises(psycopg.OperationalError, match="the database does not answer"):
        await transact()
    assert connection.closed


async def test_a_statement_that_takes_as_long_as_it_may_is_not_given_up(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await database.connect(url, name="test", statement_timeout_ms=500)
    await database.set_timeout(connection, "statement_timeout", 60_000)
    await connection.execute("SELECT pg_sleep(1)")
    # The server is first to end what takes too long, however late it is.
    monkeypatch.setattr(database, "ANSWER_GRACE_SECONDS", WAIT_SECONDS)
    await database.set_timeout(connection, "statement_timeout", 200)
    with pytest.raises(psycopg.errors.QueryCanceled):
        await connection.execute("SELECT pg_sleep(60)")
    await connection.close()


async def test_an_append_that_was_swallowed_is_there_once_when_the_network_is_back(
    url: str, database_url: str, cable: Cable
) -> None:
    async with Appender(url, queue_limit=QUEUE_LIMIT) as appender:
        await appender.append(append(ONE))
        assert appender._connection is not None
        appender._connection.allow(500)
        cable.swallow()
        swallowed = asyncio.create_task(appender.append(append(ONE)))
        await asyncio.sleep(GRACE_SECONDS)
        cable.mend()
        async with asyncio.timeout(WAIT_SECONDS):
            assert (await swallowed).position == 2
    async with connected(database_url) as connection:
        assert [(position, version) for position, _, _, version in await log(connection)] == [
            (1, 1),
            (2, 2),
        ]


async def test_a_bus_whose_server_falls_silent_connects_again(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buses, "PING_SECONDS", 0.1)
    async with AsyncExitStack() as stack:
        cable = await stack.enter_async_context(Cable(lambda: target_of(nats_url)).laid())
        bus = await stack.enter_async_context(Bus(by_cable(nats_url, cable.port), name="test"))
        cable.swallow()

        async def noticed() -> bool:
            return not bus.connected

        await until(noticed, "it is not connected any more")
        cable.mend()

        async def is_back() -> bool:
            return await bus.last_sequence("EVENT_LOG_1") is None

        await until(is_back, "it asks and is answered again")
