"""Migrations while others work: what is in their way, what interrupts them, and the code of before."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from alembic.script import ScriptDirectory
from click.testing import CliRunner

from api.cli import messenger
from infra import migrate
from infra.errors import Stopped, Unavailable

WAIT_SECONDS = 100.0
POLL_SECONDS = 0.02
HELD_SECONDS = 0.5
IMPATIENT_MS = 20_000  # they would wait for ever
MIGRATE = (sys.executable, "-m", "api.cli", "migrate")

SCRIPTS = ScriptDirectory(str(migrate.DIRECTORY))
HEAD = str(SCRIPTS.get_current_head())
BEFORE = str(SCRIPTS.get_revision(HEAD).down_revision)

IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"
MIGRATING = "SELECT pid FROM pg_stat_activity WHERE application_name = 'messenger migrate' AND datname = current_database()"
INVALID = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
ADD_PLACE = """
    INSERT INTO message_places (id, chat_id, created_at, seq)
    VALUES (gen_random_uuid(), gen_random_uuid(), now(), 1)
"""
FROM_THE_FUTURE = "UPDATE alembic_version SET version_num = '9999'"

# What code may rest on: every column, and what is checked, computed and called.
SHAPE = {
    "columns": """
        SELECT c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod)
        FROM pg_attribute AS a
        JOIN pg_class AS c ON c.oid = a.attrelid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
            AND a.attnum > 0 AND NOT a.attisdropped
    """,
    "functions": """
        SELECT oid::regprocedure::text, prosrc FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
    """,
    "triggers": """
        SELECT tgrelid::regclass::text || '.' || tgname, pg_get_triggerdef(oid) || tgenabled::text
        FROM pg_trigger
    """,
}
MUST_BE_GIVEN = """
    SELECT c.relname, a.attname
    FROM pg_attribute AS a
    JOIN pg_class AS c ON c.oid = a.attrelid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
        AND a.attnum > 0 AND a.attnotnull AND NOT a.atthasdef AND NOT a.attisdropped
"""
RULES = """
    SELECT conrelid::regclass::text, conname || ' ' || pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
    UNION ALL
    SELECT indrelid::regclass::text, pg_get_indexdef(indexrelid)
    FROM pg_index
    WHERE indisunique AND indrelid IN (
        SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace
    )
"""


@pytest.fixture
def db(empty_database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        yield connection


@contextmanager
def snapshot_held(url: str) -> Iterator[None]:
    """An index that is built concurrently waits for this reader, when nearly done."""
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM event_log")
        yield


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"not within {WAIT_SECONDS:g} s: {what}"
        time.sleep(POLL_SECONDS)


def is_valid(db: psycopg.Connection[Any], index: str) -> bool | None:
    row = db.execute(IS_VALID, (index,)).fetchone()
    return row and row[0]


def process(url: str) -> "subprocess.Popen[str]":
    environ = {**os.environ, "MESSENGER_DATABASE_URL": url}
    return subprocess.Popen(MIGRATE, env=environ, stderr=subprocess.PIPE, text=True)


INDEXES = [
    pytest.param("0006", "idx_message_places_page", "idx_message_places_page", id="page"),
    pytest.param("0005", "idx_delivery_user_open_next", "idx_delivery_user_open", id="open"),
    pytest.param("0005", "event_log_moves", "event_log_moves", id="moves"),
]


@pytest.mark.parametrize(("before", "index", "name"), INDEXES)
def test_a_migration_cut_off_in_the_middle_of_an_index_is_repeated(
    db: psycopg.Connection[Any], empty_database_url: str, before: str, index: str, name: str
) -> None:
    migrate.upgrade(empty_database_url, before)
    with cut_off_while_building(db, empty_database_url, index):
        assert is_valid(db, index) is False
    migrate.upgrade(empty_database_url)
    assert is_valid(db, name) is True
    assert db.execute(INVALID).fetchall() == []
    migrate.check(empty_database_url)


@contextmanager
def cut_off_while_building(db: psycopg.Connection[Any], url: str, index: str) -> Iterator[None]:
    """The server loses the migration's session in the middle of an index."""
    with held_up(url, index), process(url) as migrating:
        until(lambda: is_valid(db, index) is False, f"{index} is being built")
        for (pid,) in db.execute(MIGRATING).fetchall():
            db.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        _, said = migrating.communicate(timeout=WAIT_SECONDS)
        assert migrating.returncode == 1
        assert said.count("\n") == 1, said
    yield


@contextmanager
def held_up(url: str, index: str) -> Iterator[None]:
    """In the migration to 0006 another index comes first, which must get done."""
    if index != "event_log_moves":
        with snapshot_held(url):
            yield
        return
    with psycopg.connect(url) as writer:
        # Who writes is waited for by an index on this table, and by no other.
        writer.execute("LOCK TABLE event_log IN ROW EXCLUSIVE MODE")
        yield


def test_a_process_killed_in_the_middle_of_an_index_leaves_it_to_be_gone_on_with(
    db: psycopg.Connection[Any], empty_database_url: str
) -> None:
    migrate.upgrade(empty_database_url, "0006")
    with snapshot_held(empty_database_url), process(empty_database_url) as killed:
        until(lambda: is_valid(db, "idx_message_places_page") is False, "it is being built")
        killed.send_signal(signal.SIGKILL)
    # The server notices only when it is done: the next one waits its turn until then.
    migrate.upgrade(empty_database_url)
    assert is_valid(db, "idx_message_places_page") is True
    migrate.check(empty_database_url)


def test_who_reads_and_writes_goes_on_while_an_index_is_built(
    db: psycopg.Connection[Any], empty_database_url: str
) -> None:
    migrate.upgrade(empty_database_url, "0006")
    db.execute("SELECT set_config('lock_timeout', %s, false)", (str(IMPATIENT_MS),))
    with ThreadPoolExecutor(1) as threads:
        with snapshot_held(empty_database_url):
            migrating = threads.submit(migrate.upgrade, empty_database_url)
            until(lambda: is_valid(db, "idx_message_places_page") is False, "it is being built")
            db.execute(ADD_PLACE)
            assert not migrating.done()
            assert db.execute("SELECT count(*) FROM message_places").fetchone() == (1,)
        migrating.result(WAIT_SECONDS)
    assert is_valid(db, "idx_message_places_page") is True


def test_two_at_once_take_turns(db: psycopg.Connection[Any], empty_database_url: str) -> None:
    """One that waited in a statement would be waited for by the other's index: a deadlock."""
    with ThreadPoolExecutor(2) as threads:
        for one in [threads.submit(migrate.upgrade, empty_database_url) for _ in range(2)]:
            one.result(WAIT_SECONDS)
    migrate.check(empty_database_url)


def test_nobody_queues_for_long_behind_a_migration_that_waits(
    db: psycopg.Connection[Any], empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(empty_database_url, "0005")
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_MS", 100)
    monkeypatch.setattr(migrate, "LOCK_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(migrate, "LOCK_ATTEMPTS_MAX", 1_000)
    db.execute("SELECT set_config('lock_timeout', %s, false)", (str(IMPATIENT_MS),))
    with ThreadPoolExecutor(1) as threads:
        with psycopg.connect(empty_database_url) as reader:
            # A lock of a reader, who keeps it and no snapshot.
            reader.execute("LOCK TABLE message_delivery IN ACCESS SHARE MODE")
            migrating = threads.submit(migrate.upgrade, empty_database_url)
            until(lambda: is_valid(db, "event_log_moves") is True, "the indexes are built")
            ends = time.monotonic() + HELD_SECONDS
            while time.monotonic() < ends:
                db.execute("SELECT count(*) FROM message_delivery")
            assert not migrating.done()
        migrating.result(WAIT_SECONDS)
    migrate.check(empty_database_url)


def test_a_lock_that_is_never_given_up_is_told_and_leaves_nothing_half_done(
    db: psycopg.Connection[Any], empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(empty_database_url, "0005")
    for name, value in {
        "LOCK_TIMEOUT_MS": 20,
        "LOCK_PAUSE_SECONDS": 0.01,
        "LOCK_ATTEMPTS_MAX": 3,
    }.items():
        monkeypatch.setattr(migrate, name, value)
    with psycopg.connect(empty_database_url, application_name="report") as reader:
        reader.execute("LOCK TABLE message_delivery IN ACCESS SHARE MODE")
        holder = reader.info.backend_pid
        with pytest.raises(Unavailable, match=f"asked 3 times .* process {holder}, report"):
            migrate.upgrade(empty_database_url)
        assert "at 0005" in migrate.state(empty_database_url).line
        assert db.execute("SELECT to_regclass('gateways')").fetchone() == (None,)
    migrate.upgrade(empty_database_url)
    migrate.check(empty_database_url)


def test_a_migration_that_fails_says_so_in_one_line_and_leaves_nothing(
    db: psycopg.Connection[Any], empty_database_url: str
) -> None:
    migrate.upgrade(empty_database_url, "0005")
    db.execute("CREATE TABLE gateway_users (x int)")
    result = CliRunner().invoke(
        messenger, ["migrate"], env={"MESSENGER_DATABASE_URL": empty_database_url}
    )
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert 'relation "gateway_users" already exists' in result.output
    assert db.execute("SELECT to_regclass('gateways')").fetchone() == (None,)
    db.execute("DROP TABLE gateway_users")
    migrate.upgrade(empty_database_url)
    migrate.check(empty_database_url)


def checked(url: str) -> tuple[int, str]:
    environ = {"MESSENGER_DATABASE_URL": url}
    result = CliRunner().invoke(messenger, ["migrate", "--check"], env=environ)
    assert result.output.count("\n") == 1
    return result.exit_code, result.output.strip()


def test_check_says_in_one_line_how_the_database_is(
    db: psycopg.Connection[Any], empty_database_url: str
) -> None:
    url = empty_database_url
    assert checked(url) == (1, f"behind: the database is empty, this code needs {HEAD}")
    assert db.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,)
    migrate.upgrade(url, BEFORE)
    assert checked(url) == (1, f"behind: the database is at {BEFORE}, this code needs {HEAD}")
    migrate.upgrade(url)
    assert checked(url) == (0, f"up to date: the database is at {HEAD}")
    db.execute(FROM_THE_FUTURE)
    ahead = f"ahead of this code: the database is at 9999, this code knows none after {HEAD}"
    assert checked(url) == (3, ahead)


def test_check_does_not_wait_for_a_migration_that_runs(
    db: psycopg.Connection[Any], empty_database_url: str
) -> None:
    migrate.upgrade(empty_database_url, "0006")
    with snapshot_held(empty_database_url):
        migrating = process(empty_database_url)
        until(lambda: is_valid(db, "idx_message_places_page") is False, "it is being built")
        assert checked(empty_database_url)[0] == 1
        assert migrating.poll() is None
    migrating.communicate(timeout=WAIT_SECONDS)
    assert checked(empty_database_url)[0] == 0


def test_a_database_ahead_of_the_code_is_left_alone(
    db: psycopg.Connection[Any], empty_database_url: str
) -> None:
    migrate.upgrade(empty_database_url)
    db.execute(FROM_THE_FUTURE)
    with pytest.raises(Stopped, match="ahead of this code: the database is at 9999"):
        migrate.upgrade(empty_database_url)
    result = CliRunner().invoke(
        messenger, ["migrate"], env={"MESSENGER_DATABASE_URL": empty_database_url}
    )
    assert result.exit_code == 1
    assert result.output.startswith("messenger: ahead of this code")


def test_a_database_that_is_away_is_told_in_one_line() -> None:
    code, line = checked("postgresql://nobody@127.0.0.1:9/none")
    assert code == 1
    assert line.startswith("messenger: the database does not answer")


def test_the_last_migration_leaves_all_that_the_code_before_it_rests_on(
    db: psycopg.Connection[Any], empty_database_url: str
) -> None:
    """What is in the way of that goes a release later, when nothing of before runs any more."""
    migrate.upgrade(empty_database_url, BEFORE)
    shape = {what: dict(db.execute(query).fetchall()) for what, query in SHAPE.items()}
    tables = {name.partition(".")[0] for name in shape["columns"]}
    given, rules = (rows_of(db, query, tables) for query in (MUST_BE_GIVEN, RULES))
    migrate.upgrade(empty_database_url)
    for what, query in SHAPE.items():
        now = dict(db.execute(query).fetchall())
        assert {name: now.get(name) for name in shape[what]} == shape[what], what
    assert rows_of(db, MUST_BE_GIVEN, tables) <= given, "code of before does not give it"
    assert rows_of(db, RULES, tables) <= rules, "code of before does not know the rule"


def rows_of(db: psycopg.Connection[Any], query: Any, tables: set[str]) -> set[tuple[str, str]]:
    """Of the tables that were there before."""
    return {(table, what) for table, what in db.execute(query).fetchall() if table in tables}
