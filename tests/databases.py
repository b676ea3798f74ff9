"""Databases are made and dropped once nobody is in the way, however long a busy machine takes."""

import time
from typing import Any

import psycopg
from psycopg import sql

# PostgreSQL itself waits 5 s for who is connected; FORCE may not end an autovacuum, nor a superuser's
# last moments there.
IN_THE_WAY = (psycopg.errors.ObjectInUse, psycopg.errors.InsufficientPrivilege)
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.1


def until_free(connection: psycopg.Connection[Any], *statements: sql.Composed) -> None:
    """All of them, as often as it takes. Raises what was last in the way."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            for statement in statements:
                connection.execute(statement)
        except IN_THE_WAY:
            if time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(POLL_SECONDS)
