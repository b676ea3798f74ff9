"""The log in PostgreSQL: its shape, what the database refuses, and how it is read."""

import os
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from commands.send_message import SendMessage
from commands.update_profile import UpdateProfile
from domain.ids import user_stream
from domain.message import MessageSent
from domain.user import ProfileUpdated, UserRegistered
from infra import event_log, migrate
from infra.embedded.postgres import Postgres
from infra.errors import LogError
from infra.keyring import Keyring
from tests.infra.machines import SECRET, Machine, fetch, running

APPEND_ONLY = "ML001"
CHANGES = [
    "UPDATE event_log SET type = 'x'",
    "UPDATE event_log SET type = 'x' WHERE false",
    "DELETE FROM event_log",
    "TRUNCATE event_log",
    "INSERT INTO event_log SELECT * FROM event_log ON CONFLICT (position) DO UPDATE SET type = 'x'",
    """
    MERGE INTO event_log AS e USING event_log AS o ON e.position = o.position
    WHEN MATCHED THEN DELETE
    """,
]

SUPERUSER_HBA = "host all postgres 127.0.0.1/32 trust\n"


@pytest.fixture
async def machine(database_url: str) -> AsyncIterator[Machine]:
    async with running(database_url) as machine:
        yield machine


@pytest.fixture(scope="session")
def superuser_url(postgres: Postgres) -> str:
    """The server's own superuser, who is locked out otherwise."""
    data = postgres.plan.directory / "postgres"
    hba = data / "pg_hba.conf"
    hba.write_text(hba.read_text() + SUPERUSER_HBA)
    os.kill(_postmaster(data), signal.SIGHUP)
    return f"postgresql://postgres@127.0.0.1:{postgres.port}"


def _postmaster(data: Path) -> int:
    return int((data / "postmaster.pid").read_text().splitlines()[0])


def refused(connection: psycopg.Connection[Any], change: str) -> str | None:
    """The SQLSTATE with which a change is refused."""
    with pytest.raises(psycopg.Error) as error:
        connection.execute(change.encode())
    return error.value.sqlstate


@pytest.mark.parametrize("change", CHANGES)
async def test_the_database_refuses_changes_of_the_log(
    machine: Machine, database_url: str, superuser_url: str, change: str
) -> None:
    await machine.people(2)
    name = database_url.rpartition("/")[2]
    for url in (database_url, f"{superuser_url}/{name}"):
        with psycopg.connect(url, autocommit=True) as connection:
            assert refused(connection, change) == APPEND_ONLY
    with psycopg.connect(f"{superuser_url}/{name}", autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        assert refused(connection, change) == APPEND_ONLY
        assert connection.execute("SELECT count(*) FROM event_log").fetchone() == (2,)


async def test_the_first_event_has_position_and_version_1(machine: Machine) -> None:
    await machine.people(1)
    async with machine.pool.connection() as connection:
        rows = await fetch(connection, "SELECT position, stream_version FROM event_log")
        assert rows == [(1, 1)]


async def test_the_columns_are_those_of_the_contract(machine: Machine) -> None:
    statement = """
        SELECT column_name, data_type
        FROM information_schema.columns
        WHERE table_name = 'event_log' AND table_schema = 'public'
    """
    async with machine.pool.connection() as connection:
        assert dict(await fetch(connection, statement)) == {
            "position": "bigint",
            "event_id": "uuid",
            "stream": "text",
            "stream_version": "integer",
            "type": "text",
            "schema_version": "integer",
            "data": "json",
            "metadata": "json",
            "recorded_at": "timestamp with time zone",
        }


async def test_an_event_says_who_did_it_by_which_command(machine: Machine) -> None:
    [anna] = await machine.people(1)
    await machine.run(UpdateProfile(display_name="Anna"), anna)
    async with machine.pool.connection() as connection:
        [(metadata,)] = await fetch(
            connection, "SELECT metadata FROM event_log WHERE type = 'profile_updated'"
        )
    assert metadata["actor"] == anna
    assert metadata["command"] == "update-profile"
    assert metadata["command_id"] == metadata["causation_id"] == metadata["correlation_id"]


async def test_no_text_of_people_is_readable_in_the_database(machine: Machine) -> None:
    anna = await machine.register("anna_the_great", display_name="Anna Plainly")
    [ben] = await machine.people(1)
    chat_id = await machine.group(anna, ben)
    await machine.run(SendMessage(chat_id=chat_id, content="meet me at noon"), anna, key="one")
    await machine.run(UpdateProfile(avatar_url="https://example.org/me-myself"), anna, key="two")
    tables = ("event_log", "unique_values", "command_keys", "user_keys")
    async with machine.pool.connection() as connection:
        written = ""
        for table in tables:
            rows = await fetch(connection, f"SELECT t::text FROM {table} AS t".encode())
            assert rows
            written += "".join(row for (row,) in rows)
    for secret in ("anna_the_great", "Plainly", "noon", "me-myself", "$2b$", "correct horse"):
        assert secret not in written


async def test_a_range_comes_whole_and_in_order_with_unwanted_types_undecoded(
    machine: Machine,
) -> None:
    anna, ben = await machine.people(2)
    chat_id = await machine.group(anna, ben)
    await machine.run(SendMessage(chat_id=chat_id, content="hello"), anna)
    async with machine.pool.connection() as connection:
        found = await event_log.read(connection, after=1, up_to=4, types=["message_sent"])
        assert [item.position for item in found] == [2, 3, 4]
        assert [item.event is not None for item in found] == [False, False, True]
        assert isinstance(found[-1].event, MessageSent)
        assert found[-1].event.content != "hello"
        await event_log.open_events([found[-1].event], Keyring(SECRET, machine.pool))
        assert found[-1].event.content == "hello"


async def test_reading_beyond_the_head_is_an_error_not_an_end(machine: Machine) -> None:
    await machine.people(2)
    async with machine.pool.connection() as connection:
        assert await event_log.head(connection) == (2, 1)
        with pytest.raises(LogError):
            await event_log.read(connection, after=0, up_to=3, types=[])


async def test_tails_begin_after_the_known_version(machine: Machine) -> None:
    anna, ben = await machine.people(2)
    for name in ("one", "two", "three"):
        await machine.run(UpdateProfile(display_name=name), anna)
    known = {user_stream(anna): 2, user_stream(ben): 0}
    async with machine.pool.connection() as connection:
        tails = await event_log.tails(connection, known, last_only=False)
        lasts = await event_log.tails(connection, known, last_only=True)
    await event_log.open_events([item.event for item in tails], Keyring(SECRET, machine.pool))
    annas = [item.event for item in tails if item.stream == user_stream(anna)]
    assert [event.display_name for event in annas if isinstance(event, ProfileUpdated)] == [
        "two",
        "three",
    ]
    assert [item.version for item in tails if item.stream == user_stream(ben)] == [1]
    assert sorted(item.version for item in lasts) == [1, 4]


async def test_the_newest_message_is_of_the_chat_and_of_another_sender(machine: Machine) -> None:
    anna, ben = await machine.people(2)
    chat_id, other = await machine.group(anna, ben), await machine.group(anna, ben)
    bens = await machine.run(SendMessage(chat_id=chat_id, content="from Ben"), ben)
    annas = await machine.run(SendMessage(chat_id=chat_id, content="from Anna"), anna)
    await machine.run(SendMessage(chat_id=other, content="elsewhere"), ben)
    async with machine.pool.connection() as connection:
        assert await event_log.newest_message(connection, chat_id, besides=anna) == bens.position
        assert await event_log.newest_message(connection, chat_id, besides=ben) == annas.position
        assert await event_log.newest_message(connection, other, besides=ben) == 0


async def test_a_time_has_a_position(machine: Machine) -> None:
    await machine.people(3)
    now = datetime.now(UTC)
    async with machine.pool.connection() as connection:
        assert await event_log.position_at(connection, now + timedelta(hours=1)) == 3
        assert await event_log.position_at(connection, now - timedelta(hours=1)) == 0


async def test_a_username_is_found_by_who_knows_it(machine: Machine) -> None:
    anna = await machine.register("anna")
    assert await machine.executor.holder("username", "anna") == user_stream(anna)
    assert await machine.executor.holder("username", "Anna") is None


def test_the_shape_of_the_database_is_the_one_in_the_code(database_url: str) -> None:
    migrate.check(database_url)


def test_migrations_go_up_and_down_and_up_again(empty_database_url: str) -> None:
    objects = """
        SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL
        SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    """
    versions = ("alembic_version", "alembic_version_pkc")
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        migrate.upgrade(empty_database_url)
        first = sorted(connection.execute(objects).fetchall())
        assert ("append_v1",) in first
        assert ("refuse_change_v1",) in first
        migrate.downgrade(empty_database_url, "base")
        assert {name for (name,) in connection.execute(objects)} == set(versions)
        migrate.upgrade(empty_database_url)
        assert sorted(connection.execute(objects).fetchall()) == first
    migrate.check(empty_database_url)


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    migrate.upgrade(database_url)
    migrate.check(database_url)


async def test_the_states_come_back_from_the_log_alone(machine: Machine, database_url: str) -> None:
    anna, ben = await machine.people(2)
    await machine.run(UpdateProfile(display_name="Anna"), anna)
    async with running(database_url) as other:
        state = await other.executor.state(user_stream(anna))
        assert state.display_name == "Anna"
        assert isinstance(state.registration, UserRegistered)
        assert (await other.executor.state(user_stream(ben))).exists
