"""`messenger status`: once, and `--watch` on a terminal, a pipe, and while servers are away."""

import asyncio
import json
import os
import pty
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from api.cli import messenger
from api.watching import Rates, _bytes
from infra.embedded.postgres import Postgres
from infra.overview import State
from projections import NAMES
from tests.api.process import environ
from tests.api.served import Api
from tests.ops.operators import STOP_SECONDS, TOLD_SECONDS, database_away

COMMAND = (sys.executable, "-m", "api.cli", "status")


async def ran(database_url: str, nats_url: str, *arguments: str) -> tuple[int | None, str, str]:
    """Its exit code, and what it said on stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, *arguments), env=environ(database_url, nats_url), stdout=PIPE, stderr=PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), STOP_SECONDS)
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def watching(database_url: str, nats_url: str, *arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "--watch", "--every", "0.2", *arguments),
        env=environ(database_url, nats_url),
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait_for(process.communicate(), STOP_SECONDS)


async def line_with(process: Process, word: str) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(TOLD_SECONDS):
        while line := (await process.stdout.readline()).decode():
            if word in line:
                return line
    raise AssertionError(f"it ended without a word of {word!r}")


async def ended_by(process: Process, number: signal.Signals) -> tuple[int | None, str]:
    process.send_signal(number)
    _, errors = await asyncio.wait_for(process.communicate(), STOP_SECONDS)
    return process.returncode, errors.decode()


async def test_once_it_shows_all_of_it(api: Api, database_url: str, nats_url: str) -> None:
    await api.register("ann")
    (code, table, errors), (_, line, _) = await asyncio.gather(
        ran(database_url, nats_url), ran(database_url, nats_url, "--json")
    )
    assert (code, errors) == (0, "")
    for word in ("epoch 1", "log", "relay", *NAMES, f"{os.getpid()}@", "people connected"):
        assert word in table
    state = json.loads(line)
    assert (state["position"], len(state["projections"])) == (1, len(NAMES))


async def test_without_a_database_once_fails_with_one_line(nats_url: str) -> None:
    url = "postgresql://nobody@127.0.0.1:9/none"
    code, out, errors = await ran(url, nats_url)
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert errors.startswith("messenger: the database does not answer")


async def test_on_a_pipe_it_goes_on_while_postgresql_is_away(
    api: Api, database_url: str, nats_url: str, postgres: Postgres
) -> None:
    await api.register("ann")
    async with (
        watching(database_url, nats_url, "--json") as as_json,
        watching(database_url, nats_url) as plain,
    ):
        assert json.loads(await line_with(as_json, '"position":1'))["database"]["is_up"]
        await line_with(plain, " log 1 0.0/s relay 1 behind")
        async with database_away(postgres.url, database_url):
            away = json.loads(await line_with(as_json, '"is_up":false'))
            assert away["problems"][0].startswith("PostgreSQL does not answer")
            await line_with(plain, "PostgreSQL does not answer")
        await line_with(as_json, '"is_up":true')
        await line_with(plain, " log 1 ")
        assert await ended_by(as_json, signal.SIGINT) == (0, "")
        assert await ended_by(plain, signal.SIGTERM) == (0, "")


async def test_without_nats_it_says_so(database_url: str) -> None:
    async with watching(database_url, "nats://127.0.0.1:9", "--json") as process:
        state = json.loads(await line_with(process, "{"))
        assert state["relay"]["state"] == "away"
        assert "NATS does not answer" in state["problems"]


async def test_on_a_terminal_it_draws_until_ctrl_c_and_leaves_the_last(
    api: Api, database_url: str, nats_url: str
) -> None:
    await api.register("ann")
    ours, theirs = pty.openpty()
    env = environ(database_url, nats_url) | {"TERM": "xterm", "COLUMNS": "120", "LINES": "60"}
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "--watch", "--every", "0.2"), env=env, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = bytearray()
    reading = asyncio.create_task(asyncio.to_thread(read_all, ours, shown))
    try:
        async with asyncio.timeout(TOLD_SECONDS):
            while shown.count(b"people connected") < 2:
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), STOP_SECONDS) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await reading
        os.close(ours)
    last = bytes(shown).rpartition(b"\x1b[?1049l")[2]
    assert b"people connected" in last
    assert b"Traceback" not in shown


def read_all(descriptor: int, into: bytearray) -> None:
    """Until the other end is closed."""
    with suppress(OSError):
        while chunk := os.read(descriptor, 65_536):
            into += chunk


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--watch", "--every", "0.1"], "0.1 is not in the range 0.2<=x<=3600"),
        (["--watch", "--every", "3601"], "3601.0 is not in the range"),
        (["--watch", "--every", "nan"], "nan"),
        (["--watch", "--every", "soon"], "'soon' is not a valid float"),
        (["--every", "2"], "--every goes with --watch"),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(messenger, ["status", *arguments])
    assert result.exit_code == 2
    assert told in result.output


def test_a_rate_is_told_only_where_there_is_one() -> None:
    rates = Rates()
    assert rates.of(at(0, 100)) == {}
    assert rates.of(at(2, 110)) == {"log": 5.0}
    assert rates.of(at(2, 110)) == {}
    assert rates.of(at(3, 50)) == {}
    assert rates.of(at(4, 51)) == {"log": 1.0}


def at(second: int, position: int) -> State:
    shown: dict[str, Any] = {
        "at": f"2026-01-01T00:00:{second:02}Z",
        "epoch": 1,
        "position": position,
        "database": {"is_up": True, "reason": None, "size_bytes": None},
        "relay": {
            "position": None,
            "lag_events": None,
            "lag_seconds": None,
            "state": "away",
            "reason": None,
        },
        "projections": [],
        "processes": [],
        "upkeep": None,
        "people_connected": None,
        "problems": [],
    }
    return msgspec.convert(shown, State)


def test_sizes_have_a_unit_that_fits() -> None:
    assert [_bytes(size) for size in (None, 999, 1_000, 12_345_678)] == [
        "0.0 B",
        "999.0 B",
        "1.0 kB",
        "12.3 MB",
    ]
