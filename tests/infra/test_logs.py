"""What is logged: bounded, structured, and nothing that has to be erased with somebody."""

import asyncio
import json
from typing import Any

import psycopg
import pytest

from infra import clock
from infra.bus import Bus
from infra.logs import MAX_FIELD_CHARACTERS, Logger, traceback_of
from infra.projector import Projector
from projections import BY_NAME
from tests.infra import machines
from tests.infra.daemons import connected, failures, keyring, named_too_long, tasks, until


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_one_object_and_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    Logger("info", process="test").info("said", text="x" * 10 * MAX_FIELD_CHARACTERS + "\nend")
    [line] = lines(capsys)
    assert (line["event"], line["level"], line["process"]) == ("said", "info", "test")
    assert len(line["text"]) < MAX_FIELD_CHARACTERS + 10
    assert line["text"].endswith("x\nend")


def test_what_is_below_the_level_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    logger = Logger("warning")
    logger.debug("one")
    logger.info("two")
    logger.bind(of="three").warning("three")
    assert [line["event"] for line in lines(capsys)] == ["three"]


async def taken_twice(url: str, value: str) -> None:
    statement = "INSERT INTO unique_values (scope, value, holder) VALUES ('slug', %s, 'chat-1')"
    async with connected(url) as connection:
        await connection.execute(statement, (value,))
        await connection.execute(statement, (value,))


async def test_a_traceback_has_no_values_of_rows(database_url: str) -> None:
    """PostgreSQL puts them into the lines after the first."""
    value = clock.new_id()
    with pytest.raises(psycopg.Error, match=value) as caught:
        await taken_twice(database_url, value)
    later = ValueError("while it was written")
    later.__cause__ = caught.value
    told = traceback_of(later)
    assert "UniqueViolation: duplicate key value" in told
    assert told.endswith("ValueError: while it was written\n")
    assert "in taken_twice" in told
    assert value not in told


def test_causes_are_told_but_not_without_end() -> None:
    error: Exception = ValueError("the first")
    for number in range(100):
        later = ValueError(f"number {number}")
        later.__cause__ = error
        error = later
    told = traceback_of(error)
    assert told.endswith("number 99\n")
    assert "the first" not in told


async def test_an_event_that_is_not_applied_is_logged_with_the_request_it_came_from(
    database_url: str, nats_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        machines.running(database_url) as machine,
        keyring(database_url) as keys,
        Bus(nats_url, name="test") as bus,
    ):
        append = await named_too_long(keys)
        metadata = b'{"correlation_id": "find-me", "command_id": "its-command"}'
        [event] = append.events
        await machine.executor.append(append._replace(events=[event._replace(metadata=metadata)]))
        projector = Projector(
            BY_NAME["users"],
            database_url=database_url,
            keyring=keys,
            bus=bus,
            logger=Logger("error", process="projector"),
        )
        async with tasks(projector.run()), connected(database_url) as connection:

            async def failed() -> bool:
                return "users" in await failures(connection)

            await until(failed, "it stands still")
            await asyncio.sleep(0)
    line = next(line for line in lines(capsys) if line["event"] == "event_not_applied")
    assert (line["projection"], line["position"], line["type"]) == ("users", 1, "user_registered")
    assert (line["request_id"], line["command_id"]) == ("find-me", "its-command")
    assert "xxx" not in line["reason"]
