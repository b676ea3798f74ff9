"""Connections to PostgreSQL: autocommit, UTC, with every wait bounded on the server."""

from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from infra.errors import Unavailable

CONNECT_TIMEOUT_SECONDS = 5
POOL_TIMEOUT_SECONDS = 5
LOCK_TIMEOUT_MS = 5_000
STATEMENT_TIMEOUT_MS = 30_000
IDLE_IN_TRANSACTION_TIMEOUT_MS = 30_000

Connection = psycopg.AsyncConnection[Any]
Pool = AsyncConnectionPool[Connection]


def options(
    *, name: str, statement_timeout_ms: int = STATEMENT_TIMEOUT_MS, search_path: str = "public"
) -> dict[str, Any]:
    """Connection parameters; `name` is what pg_stat_activity shows."""
    settings = {
        "lock_timeout": LOCK_TIMEOUT_MS,
        "statement_timeout": statement_timeout_ms,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT_MS,
        "TimeZone": "UTC",
        "search_path": search_path,
    }
    return {
        "application_name": f"messenger {name}",
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "autocommit": True,
        "options": " ".join(f"-c {key}={value}" for key, value in settings.items()),
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
    return AsyncConnectionPool(
        url,
        min_size=1,
        max_size=size,
        timeout=POOL_TIMEOUT_SECONDS,
        kwargs=options(name=name),
        open=False,
        name=name,
    )


# What a caller sees as "the database is not there just now".
DOWN = (psycopg.OperationalError, PoolTimeout)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
