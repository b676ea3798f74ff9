"""A database put back to an earlier moment under its name, as a restore does: whoever is connected
is cut off, and finds everything in it as it was then."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
from psycopg import sql

from tests.databases import until_free

CLOSE = "ALTER DATABASE {} ALLOW_CONNECTIONS false"
OPEN = "ALTER DATABASE {} ALLOW_CONNECTIONS true"
COPY = "CREATE DATABASE {} TEMPLATE {}"
DROP: LiteralString = "DROP DATABASE IF EXISTS {} WITH (FORCE)"

# Not an autovacuum that happens to be there: only a superuser may end that.
END_SESSIONS = """
    SELECT pg_terminate_backend(pid, 5000)
    FROM pg_stat_activity
    WHERE datname = {} AND usename = current_user
"""


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
        with psycopg.connect(self._server_url, autocommit=True) as connection:
            until_free(connection, _composed(DROP, self._kept))

    def _copy(self, source: str, target: str) -> None:
        with psycopg.connect(self._server_url, autocommit=True) as connection:
            until_free(connection, _composed(CLOSE, source))
            until_free(connection, _composed(DROP, target))
            ends = sql.SQL(END_SESSIONS).format(source)
            until_free(connection, ends, _composed(COPY, target, source))
            until_free(connection, _composed(OPEN, source))


def _composed(statement: LiteralString, *names: str) -> sql.Composed:
    return sql.SQL(statement).format(*(sql.Identifier(name) for name in names))


@contextmanager
def restores(server_url: str, url: str) -> Iterator[Restores]:
    made = Restores(server_url, url)
    try:
        yield made
    finally:
        made.drop()
