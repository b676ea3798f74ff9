"""Indexes on tables that are big and in use: for migrations, made and dropped while all go on.

`build` and `drop` stand first in a migration, for whatever stands before them is committed by them.
They may be repeated: what an interruption left unfinished is made anew, and what is finished
is kept, since only an earlier run of the same migration can have made it. An index that takes
another's place is built under the name `NAME_next` and takes over by `take_over`, in the
transaction in which the migration is noted as done.

Building waits for every transaction that was there before it, and keeps nobody waiting meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from alembic import op

from infra import migrate

WAIT_MS = 3_600_000

IS_VALID = sa.text("""
    SELECT indisvalid
    FROM pg_index
    WHERE indexrelid = to_regclass(:name)
""")

RENAME = """
    ALTER INDEX %(next)s RENAME TO %(name)s
"""


def build(name: str, table: str, columns: list[Any], **options: Any) -> None:
    with _outside_a_transaction() as connection:
        is_valid = connection.scalar(IS_VALID, {"name": name})
        if is_valid is False:
            op.drop_index(name, table, postgresql_concurrently=True)
        if is_valid is not True:
            op.create_index(name, table, columns, postgresql_concurrently=True, **options)


def drop(name: str, table: str) -> None:
    with _outside_a_transaction():
        op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)


def next_of(name: str) -> str:
    return f"{name}_next"


def take_over(name: str, table: str) -> None:
    """The index that was built as the next one becomes the one of that name."""
    op.drop_index(name, table)
    names = {"name": name, "next": next_of(name)}
    op.execute(sa.DDL(RENAME, context=names))  # type: ignore[no-untyped-call]


@contextmanager
def _outside_a_transaction() -> Iterator[sa.Connection]:
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        migrate.set_lock_timeout(connection, WAIT_MS)
        yield connection
        migrate.set_lock_timeout(connection, migrate.LOCK_TIMEOUT_MS)
