"""A database put back to an earlier moment under its name, as a restore does: whoever is connected
is cut off, and finds everything in it as it was then."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
from psycopg import sql

CLOSE = "ALTER DATABASE {} ALLOW_CONNECTIONS false"
OPEN = "ALTER DATABASE {} ALLOW_CONNECTIONS true"
COPY = "CREATE DATABASE {} TEMPLATE {}"
DROP: LiteralString = "DROP DATABASE IF EXISTS {} WITH (FORCE)"

# Not an autovacuum that happens to be there: only a superuser may end that.
END_SESSIONS = """
    SELECT pg_terminate_backend(pid, 5000)
    FROM pg_stat_activity
    WHERE datname = %s AND usename = current_user
"""

# An autovacuum refuses the drop, and who was just signing in the copy, until they are gone.
IN_THE_WAY = (psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectInUse)
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.1


class Restores:
    """`keep` the database as it is, then `go_back` to that."""

    def __init__(self, server_url: str, url: str) -> None:
        self._server_url = server_url
        self._name = urlsplit(url).path.removeprefix("/")
        self._kept = f"kept_{uuid4().hex}"

    async def keep(self) -> None:
        await asyncio.to_thread(self._copy, self._name, self._kept)

    async def go_back(self) -> None:
        await asyncio.to_thread(self._copy, self._kept, self._name)

    def drop(self) -> None:
        self._run((DROP, self._kept))

    def _copy(self, source: str, target: str) -> None:
        self._run((CLOSE, source), (DROP, target), (COPY, target, source), (OPEN, source))

    def _run(self, *statements: tuple[LiteralString, *tuple[str, ...]]) -> None:
        with psycopg.connect(self._server_url, autocommit=True) as connection:
            for statement, *names in statements:
                _execute(connection, statement, *names)


def _execute(connection: psycopg.Connection[Any], statement: LiteralString, *names: str) -> None:
    identifiers: list[Any] = [sql.Identifier(name) for name in names]
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            if statement == COPY:
                connection.execute(END_SESSIONS, (names[1],))
            connection.execute(sql.SQL(statement).format(*identifiers))
            return
        except IN_THE_WAY:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


@contextmanager
def restores(server_url: str, url: str) -> Iterator[Restores]:
    made = Restores(server_url, url)
    try:
        yield made
    finally:
        made.drop()
