"""Connections to PostgreSQL: autocommit, UTC, with every wait bounded on the server."""

import os
import select
import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import msgspec
import psycopg
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from infra.errors import Unavailable

CONNECT_TIMEOUT_SECONDS = 5
POOL_TIMEOUT_SECONDS = 5
# Then the next caller tries anew. Longer, and its growing pauses would outlast the outage.
POOL_RECONNECT_SECONDS = 2
LOCK_TIMEOUT_MS = 5_000
STATEMENT_TIMEOUT_MS = 30_000
IDLE_IN_TRANSACTION_TIMEOUT_MS = 30_000
HOST_CHARACTERS = 20  # of 63 that a name may have

SET_CONFIG = """
    SELECT set_config(%s, %s, %s)
"""

# A page of messages has a hundred JSON values: several times as fast as json.loads.
set_json_loads(msgspec.json.decode)

Connection = psycopg.AsyncConnection[Any]
Pool = AsyncConnectionPool[Connection]
AnyConnection = TypeVar("AnyConnection", bound=Connection)


def process_name(role: str) -> str:
    """For a connection that tells of this process, on which it speaks all the time."""
    return f"{role} {os.getpid()}@{socket.gethostname()[:HOST_CHARACTERS]}"


def options(
    *,
    name: str,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    search_path: str = "public",
    settings: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Connection parameters; `name` is what pg_stat_activity shows."""
    all_settings = {
        "lock_timeout": LOCK_TIMEOUT_MS,
        "statement_timeout": statement_timeout_ms,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT_MS,
        "TimeZone": "UTC",
        "search_path": search_path,
        **settings,
    }
    return {
        "application_name": f"messenger {name}",
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "autocommit": True,
        "options": " ".join(f"-c {key}={value}" for key, value in all_settings.items()),
    }


async def connect(
    url: str,
    *,
    name: str,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    search_path: str = "public",
) -> Connection:
    """Raises Unavailable."""
    try:
        return await psycopg.AsyncConnection.connect(
            url,
            **options(
                name=name, statement_timeout_ms=statement_timeout_ms, search_path=search_path
            ),
        )
    except psycopg.OperationalError as error:
        raise Unavailable(f"the database does not answer: {first_line(error)}") from error


def pool(url: str, *, name: str, size: int) -> Pool:
    """A pool that is not open yet: `async with` opens it."""
    return pool_of(psycopg.AsyncConnection[Any], url, name=name, size=size, settings={})


def pool_of(
    connection_class: type[AnyConnection],
    url: str,
    *,
    name: str,
    size: int,
    settings: Mapping[str, str],
) -> AsyncConnectionPool[AnyConnection]:
    """A pool of connections with PostgreSQL's `settings`."""
    return AsyncConnectionPool(
        url,
        connection_class=connection_class,
        min_size=1,
        max_size=size,
        timeout=POOL_TIMEOUT_SECONDS,
        reconnect_timeout=POOL_RECONNECT_SECONDS,
        kwargs=options(name=name, settings=settings),
        check=_check,
        open=False,
        name=name,
    )


async def _check(connection: Connection) -> None:
    """A connection that broke while idle is replaced, before anybody gets it.

    An idle one has nothing to say: only where there is something to read, a round trip is paid.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        await Pool.check_connection(connection)


async def set_timeout(
    connection: Connection,
    name: Literal["statement_timeout", "lock_timeout"],
    milliseconds: int,
    *,
    is_local: bool = False,
) -> None:
    """For the session, or (`is_local`) the rest of the transaction."""
    await connection.execute(SET_CONFIG, (name, str(milliseconds), is_local))


# What a caller sees as "the database is not there just now".
DOWN = (psycopg.OperationalError, PoolTimeout)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
