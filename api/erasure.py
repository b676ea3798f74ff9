"""`messenger erasure report`: what is left of a user, as a table."""

import re

from rich.console import Console
from rich.table import Column, Table

from domain.ids import StreamId, UserId
from infra import database, event_log, remains
from infra.bus import Bus
from infra.database import Connection
from infra.errors import MessengerError
from infra.executor import former_scope
from infra.keyring import Keyring, Secret
from infra.objects import Objects
from infra.remains import Deletion, Found, Remains
from infra.settings import Settings

POOL_SIZE = 2
# The whole log is looked through.
STATEMENT_TIMEOUT_MS = 3_600_000
PIPED_CHARACTERS = 160

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def run_report(settings: Settings, user: str) -> int:
    """The exit code: 1 if anything can be read that should not be, or was not looked at."""
    url, name = settings.database_url, "erasure report"
    async with (
        await database.connect(
            url, name=name, statement_timeout_ms=STATEMENT_TIMEOUT_MS
        ) as connection,
        database.pool(url, name=name, size=POOL_SIZE) as pool,
        Bus.of(settings, name=name) as bus,
        Objects(settings) as objects,
    ):
        secret = await Secret.load(settings.secret, connection)
        user_id = await _user_id(connection, secret, user)
        deletion = await remains.deletion_of(connection, user_id)
        keyring = Keyring(secret, pool)
        found = await Remains(connection, keyring, bus, objects, user_id, deletion).find()
    return _show(user_id, deletion, found)


async def _user_id(connection: Connection, secret: Secret, user: str) -> UserId:
    """By a username too: that of a deleted account is still known by its keyed hash."""
    if UUID.fullmatch(user):
        user_id = UserId(user)
    else:
        stream = await _holder(connection, secret, user)
        user_id = UserId((stream or "").partition("-")[2])
    if not await remains.is_known(connection, user_id):
        raise MessengerError(f"there is no user {user!r}")
    return user_id


async def _holder(connection: Connection, secret: Secret, username: str) -> StreamId | None:
    """Also by a hash that was made where the log was before."""
    scopes = {"username": secret.blinding}
    for name, former in (await secret.former(connection)).items():
        scopes[former_scope("username", name)] = former
    holders = [
        await event_log.holder(connection, scope, blinding.blind("username", username.encode()))
        for scope, blinding in scopes.items()
    ]
    return next(filter(None, holders), None)


def _show(user_id: UserId, deletion: Deletion, found: list[Found]) -> int:
    table = Table(
        "where",
        Column("found", justify="right"),
        Column("readable", justify="right"),
        "",
        title=f"user {user_id}: {_state(deletion)}",
    )
    for one in found:
        table.add_row(one.where, str(one.number), str(one.readable or ""), one.note)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_CHARACTERS)
    console.print(table)
    readable = [one.where for one in found if one.readable]
    if readable:
        console.print(f"can be read: {', '.join(readable)}")
    unknown = [one.where for one in found if not one.was_looked_at]
    if unknown:
        console.print(f"not looked at: {', '.join(unknown)}")
    if deletion.position and not readable and not unknown:
        console.print("nothing that was to be erased can be read")
    return 1 if readable or unknown or not deletion.position else 0


def _state(deletion: Deletion) -> str:
    if not deletion.position:
        return "not deleted"
    what = "profile and messages" if deletion.erases_messages else "profile"
    end = f"finished {deletion.finished_at:%F %T}" if deletion.finished_at else "not finished yet"
    return f"deleted at position {deletion.position} ({what}), {end}"
