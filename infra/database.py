"""Connections to PostgreSQL: autocommit, UTC, with every wait bounded on the server, and here for a
server that is not heard of any more: nothing tells of a peer, or of a network, that fell silent."""

import os
import select
import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import msgspec
import psycopg
from psycopg.abc import RV, PQGen
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
# Longer than the server lets a statement take: only one that is not heard of waits so long.
ANSWER_GRACE_SECONDS = 5.0
# As psycopg's own: how often it looks for signals while it waits.
WAIT_INTERVAL_SECONDS = 0.1
# Where the network is gone altogether, both sides' kernels notice earlier: they ask after so long a
# silence, then every so often so many times, and what is sent is to be acknowledged within the last.
KEEPALIVES_IDLE_SECONDS = 5
KEEPALIVES_INTERVAL_SECONDS = 2
KEEPALIVES_COUNT = 3
UNACKNOWLEDGED_MS = 11_000

SET_CONFIG = """
    SELECT set_config(%s, %s, %s)
"""

# A page of messages has a hundred JSON values: several times as fast as json.loads.
set_json_loads(msgspec.json.decode)


class Connection(psycopg.AsyncConnection[Any]):
    """One that is closed when the server does not answer within `answer_seconds`."""

    answer_seconds = STATEMENT_TIMEOUT_MS / 1_000 + ANSWER_GRACE_SECONDS

    async def wait(
        self, gen: PQGen[RV], interval: float = WAIT_INTERVAL_SECONDS, timeout: float | None = None
    ) -> RV:
        if timeout is not None:
            return await super().wait(gen, interval, timeout)
        try:
            return await super().wait(gen, interval, self.answer_seconds)
        except psycopg.errors._WaitTimeout:
            # Its answer may still come, and would be taken for that of the next statement.
            self.pgconn.finish()
            raise psycopg.OperationalError("the database does not answer") from None

    def allow(self, statement_timeout_ms: int, *, at_least: bool = False) -> None:
        """What the server lets a statement take from now on."""
        seconds = statement_timeout_ms / 1_000 + ANSWER_GRACE_SECONDS
        self.answer_seconds = max(seconds, self.answer_seconds) if at_least else seconds


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
        "tcp_keepalives_idle": KEEPALIVES_IDLE_SECONDS,
        "tcp_keepalives_interval": KEEPALIVES_INTERVAL_SECONDS,
        "tcp_keepalives_count": KEEPALIVES_COUNT,
        "TimeZone": "UTC",
        "search_path": search_path,
        **settings,
    }
    return {
        "application_name": f"messenger {name}",
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "keepalives_idle": KEEPALIVES_IDLE_SECONDS,
        "keepalives_interval": KEEPALIVES_INTERVAL_SECONDS,
        "keepalives_count": KEEPALIVES_COUNT,
        "tcp_user_timeout": UNACKNOWLEDGED_MS,
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
        connection = await Connection.connect(
            url,
            **options(
                name=name, statement_timeout_ms=statement_timeout_ms, search_path=search_path
            ),
        )
    except psycopg.OperationalError as error:
        raise Unavailable(f"the database does not answer: {first_line(error)}") from error
    connection.allow(statement_timeout_ms)
    return connection


def pool(url: str, *, name: str, size: int) -> Pool:
    """A pool that is not open yet: `async with` opens it."""
    return pool_of(Connection, url, name=name, size=size, settings={})


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
    if name == "statement_timeout":
        connection.allow(milliseconds, at_least=is_local)
    await connection.execute(SET_CONFIG, (name, str(milliseconds), is_local))


# What a caller sees as "the database is not there just now".
DOWN = (psycopg.OperationalError, PoolTimeout)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
