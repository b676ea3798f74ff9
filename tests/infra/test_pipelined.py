"""Statements that travel together, on a real server: what comes back, and what is left behind."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg.errors import DivisionByZero, QueryCanceled

from infra import pipelined
from infra.pipelined import Connection, Pipeline, Pool, Row

BEGIN: LiteralString = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
COMMIT: LiteralString = "COMMIT"
READS = 150
MAX_TURNS = 30

ID = UUID("0190a1b2-0000-7000-8000-000000000001")
THEN = datetime(2026, 11, 25, 12, 30, 15, 123456, tzinfo=UTC)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with pipelined.pool(database_url, name="test", size=2) as pool:
        yield pool


@pytest.fixture
async def connection(pool: Pool) -> AsyncIterator[Connection]:
    async with pool.connection() as connection:
        yield connection


@pytest.fixture
def pipeline(connection: Connection) -> Pipeline:
    return connection.own_pipeline


async def only(pipeline: Pipeline, statement: LiteralString, **arguments: Any) -> Any:
    """The only value of the only row."""
    sent = pipeline.send(statement, arguments)
    await pipeline.exchange()
    [row] = sent.rows
    [value] = row.values()
    return value


async def test_each_statement_gets_its_own_rows_in_one_exchange(pipeline: Pipeline) -> None:
    pipeline.send(BEGIN)
    one = pipeline.send("SELECT 1 AS one, 'a' AS letter")
    none = pipeline.send("SELECT 1 AS one WHERE false")
    many = pipeline.send("SELECT n FROM generate_series(1, 3) AS n")
    await pipeline.end(COMMIT)
    assert one.rows == [{"one": 1, "letter": "a"}]
    assert none.rows == []
    assert many.rows == [{"n": 1}, {"n": 2}, {"n": 3}]


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("SELECT %(value)s::int", -5),
        ("SELECT %(value)s::bigint", 2**62),
        ("SELECT %(value)s::boolean", False),
        ("SELECT %(value)s::text", "it's 50 % \\ “so”, ünïcode 🎈"),
        ("SELECT %(value)s::text", None),
        ("SELECT %(value)s::uuid", ID),
        ("SELECT %(value)s::timestamptz", THEN),
        ("SELECT %(value)s::text[]", ['a "b"', "", "c,d", "{}", "NULL"]),
        ("SELECT %(value)s::uuid[]", [ID]),
        ("SELECT %(value)s::int[]", []),
    ],
)
async def test_values_come_back_as_they_went(
    pipeline: Pipeline, statement: LiteralString, value: Any
) -> None:
    for _ in range(2):  # prepared, and then known
        assert await only(pipeline, statement, value=value) == value


async def test_a_statement_is_prepared_once_whatever_its_values(
    connection: Connection, pipeline: Pipeline
) -> None:
    for value in (1, 2**40, 7):
        assert await only(pipeline, "SELECT %(value)s::bigint + 1", value=value) == value + 1
    count = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%%bigint + 1'"
    assert await only(pipeline, count) == 1


async def test_a_name_may_stand_twice_and_a_percent_sign_is_one(pipeline: Pipeline) -> None:
    assert await only(pipeline, "SELECT %(a)s::int * %(b)s::int + %(a)s::int %% 5", a=7, b=3) == 23


async def test_more_statements_than_are_kept_still_work(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelined, "MAX_PREPARED", 2)
    statements: tuple[LiteralString, ...] = ("SELECT 1", "SELECT 2", "SELECT 3", "SELECT 4")
    for _ in range(2):
        assert [await only(pipeline, one) for one in statements] == [1, 2, 3, 4]


async def test_answers_that_are_longer_than_any_buffer_come_whole(pipeline: Pipeline) -> None:
    sent = pipeline.send("SELECT repeat('x', 1000) AS text FROM generate_series(1, 20000)")
    after = pipeline.send("SELECT 1 AS one")
    await pipeline.exchange()
    assert len(sent.rows) == 20_000
    assert all(len(row["text"]) == 1_000 for row in sent.rows)
    assert after.rows == [{"one": 1}]


async def test_questions_that_are_longer_than_any_buffer_arrive_whole(pipeline: Pipeline) -> None:
    texts = [letter * 3_000_000 for letter in "abcdef"]
    sent = [pipeline.send("SELECT length(%(text)s::text) AS n", {"text": one}) for one in texts]
    await pipeline.exchange()
    assert [one.rows for one in sent] == [[{"n": 3_000_000}]] * 6


async def test_the_first_that_fails_is_told_and_the_connection_is_not_used_again(
    connection: Connection, pipeline: Pipeline
) -> None:
    pipeline.send(BEGIN)
    before = pipeline.send("SELECT 1 AS one")
    pipeline.send("SELECT 1 / %(zero)s::int", {"zero": 0})
    after = pipeline.send("SELECT no_such_column")
    with pytest.raises(DivisionByZero):
        await pipeline.exchange()
    assert (before.rows, after.rows) == ([{"one": 1}], [])
    with pytest.raises(psycopg.OperationalError):
        await pipeline.end(COMMIT)
    await connection.close()


async def test_a_transaction_that_stays_open_is_no_end(
    connection: Connection, pipeline: Pipeline
) -> None:
    pipeline.send(BEGIN)
    with pytest.raises(psycopg.OperationalError, match="left open"):
        await pipeline.end("SELECT 1")
    await connection.close()


async def test_a_statement_that_takes_too_long_is_ended_by_the_server(
    connection: Connection, pipeline: Pipeline
) -> None:
    pipeline.send(BEGIN)
    pipeline.send("SELECT set_config('statement_timeout', '50', true)")
    pipeline.send("SELECT pg_sleep(20)")
    with pytest.raises(QueryCanceled):
        await pipeline.exchange()
    await connection.close()


async def test_a_server_that_is_not_heard_of_is_waited_for_no_longer_than_said(
    connection: Connection, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = connection.info.backend_pid
    monkeypatch.setattr(pipelined, "EXCHANGE_SECONDS", 0.2)
    os.kill(pid, signal.SIGSTOP)
    try:
        pipeline.send("SELECT 1")
        with pytest.raises(psycopg.OperationalError, match="does not answer"):
            await pipeline.exchange()
    finally:
        os.kill(pid, signal.SIGCONT)
    await connection.close()


async def test_a_connection_that_breaks_is_told_as_one(
    connection: Connection, pipeline: Pipeline
) -> None:
    pid = connection.info.backend_pid
    sleeping = asyncio.create_task(only(pipeline, "SELECT pg_sleep(20)"))
    await asyncio.sleep(0.1)
    os.kill(pid, signal.SIGTERM)
    with pytest.raises(psycopg.OperationalError):
        await sleeping
    with pytest.raises(psycopg.OperationalError):
        await only(pipeline, "SELECT 1")
    await connection.close()


async def test_reads_cancelled_at_any_moment_leave_only_good_connections(pool: Pool) -> None:
    """Whoever could not end its reading closes the connection, as the read models do."""
    chance = random.Random(5)

    async def read() -> list[Row]:
        connection = await pool.getconn()
        try:
            pipeline = connection.own_pipeline
            pipeline.send(BEGIN)
            await pipeline.exchange()
            sent = pipeline.send("SELECT n FROM generate_series(1, 200) AS n")
            await pipeline.exchange()
            await pipeline.end(COMMIT)
            return sent.rows
        except BaseException:
            await connection.close()
            raise
        finally:
            await pool.putconn(connection)

    for _ in range(READS):
        reading = asyncio.create_task(read())
        for _ in range(chance.randrange(MAX_TURNS)):
            await asyncio.sleep(0)
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        assert len(await read()) == 200


async def test_what_was_begun_before_is_found_out_and_not_passed_on(pool: Pool) -> None:
    """The fault that once went from reader to reader: a transaction inside another."""
    async with pool.connection() as connection:
        await connection.execute("BEGIN")
        connection.own_pipeline.send("SELECT 1")
        with pytest.raises(psycopg.OperationalError, match="left open"):
            await connection.own_pipeline.end("SELECT 2")
        await connection.close()
