"""What the tests of the operators' page share: the token, the state, processes, an outage."""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, LiteralString
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from tests.api.process import environ
from tests.api.served import Api, Json, good
from tests.infra.daemons import until

TOKEN = "0d1f5b7c9e3a8642"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
# Of what takes the operators' page some seconds to be sure of.
TOLD_SECONDS = 60.0
STOP_SECONDS = 60.0
WAIT_SECONDS = 15.0  # less than the client's
IMPATIENCE_SECONDS = 0.3  # tests need not wait for as long as people would

ALLOW: LiteralString = "ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {allowed}"
END = """
    SELECT pg_terminate_backend(pid)
    FROM pg_stat_activity
    WHERE datname = %s AND pid <> pg_backend_pid()
"""


async def state(api: Api) -> Json:
    return good(await api.client.get("/ops/state", headers=BEARER))


async def told(api: Api, holds: Callable[[Json], bool], what: str) -> Json:
    """The first state of which it holds."""
    seen: Json = {}

    async def is_so() -> bool:
        nonlocal seen
        seen = await state(api)
        return holds(seen)

    try:
        await until(is_so, what, TOLD_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{error}; seen: {seen}") from None
    return seen


def process_of(seen: Json, role: str) -> Json:
    """The one of the role, or the newest. While PostgreSQL is away, nobody may be known."""
    return min(
        (one for one in seen["processes"] if one["role"] == role),
        key=lambda one: (one["state"] == "gone", one["connected_seconds"] or 0.0),
        default={"role": role, "process": None, "state": "unknown"},
    )


def model_of(seen: Json, name: str) -> Json:
    """While PostgreSQL is away, none is known."""
    found = [one for one in seen["projections"] if one["name"] == name]
    assert len(found) <= 1
    return dict(found[0]) if found else {"name": name, "state": "unknown"}


@asynccontextmanager
async def started(database_url: str, nats_url: str, *arguments: str) -> AsyncIterator[Process]:
    """`messenger ARGUMENTS` as a process of its own, whatever becomes of it meanwhile."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.cli", *arguments),
        env=environ(database_url, nats_url, log_level="error"),
        stdout=DEVNULL,
        stderr=DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait_for(process.wait(), STOP_SECONDS)


@asynccontextmanager
async def database_away(server_url: str, database_url: str) -> AsyncIterator[None]:
    """Nobody reaches it, and who was connected is not any more."""
    name = urlsplit(database_url).path.removeprefix("/")
    await asyncio.to_thread(_allow, server_url, name, allowed=False)
    try:
        yield
    finally:
        await asyncio.to_thread(_allow, server_url, name, allowed=True)


def _allow(server_url: str, name: str, *, allowed: bool) -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        words: dict[str, Any] = {"name": sql.Identifier(name), "allowed": sql.Literal(allowed)}
        connection.execute(sql.SQL(ALLOW).format(**words))
        if not allowed:
            connection.execute(END, (name,))
