"""What any command of `messenger` says of arguments, outputs and servers that can't be: a line, no
traceback."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest

from api import cli
from infra.embedded.process import Log
from infra.errors import Unavailable
from tests.api.process import environ
from tests.api.served import settings

NO_TEXT = b"\xff"
SECONDS = 30.0


def messenger(
    *arguments: str | bytes, stdout: int = subprocess.PIPE, environ: dict[str, Any] | None = None
) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environ,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        ("events", "--stream", NO_TEXT),
        ("explain", "unread", NO_TEXT, "chat"),
        ("erasure", "report", NO_TEXT),
        ("replay", NO_TEXT),
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_an_argument_that_is_no_utf_8_is_refused_in_a_line(
    arguments: tuple[str | bytes, ...],
) -> None:
    code, said = messenger(*arguments)
    assert (code, said) == (2, "messenger: an argument is no UTF-8: \ufffd\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", ""),
        ("export", "-"),
        ("import", "jsonl", ""),
        ("up", "--data-dir", ""),
        ("status", "--data-dir", "-"),
    ],
    ids=" ".join,
)
def test_a_path_that_is_none_is_refused(arguments: tuple[str, ...]) -> None:
    code, said = messenger(*arguments)
    assert code == 2
    assert said.splitlines()[-1].endswith("is no path")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_output_that_can_not_be_written_is_said_in_a_line() -> None:
    with Path("/dev/full").open("wb") as full:
        code, said = messenger("settings", stdout=full.fileno())
    assert (code, said) == (
        1,
        "messenger: the output can't be written: No space left on device\n",
    )


NOBODY = "postgresql://127.0.0.1:9/messenger"


@pytest.mark.parametrize("name", ["api", "project", "maintain"])
def test_the_last_line_of_what_logs_is_one_of_its_log(name: str) -> None:
    arguments = ("project", "users") if name == "project" else (name,)
    code, said = messenger(*arguments, environ=environ(NOBODY, "nats://127.0.0.1:9"))
    [line] = map(json.loads, said.splitlines())
    assert (code, line["level"], line["event"]) == (1, "error", "process_ends")
    assert line["process"] == ("projector" if name == "project" else name)
    assert line["reason"].startswith("the database does not answer")


def test_tools_say_it_plainly() -> None:
    code, said = messenger("verify", environ=environ(NOBODY, "nats://127.0.0.1:9"))
    assert (code, said.startswith("messenger: the database does not answer")) == (1, True), said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            psycopg.errors.AdminShutdown("terminating connection\nby an administrator"),
            "the database does not answer: terminating connection",
        ),
        (
            psycopg.errors.InsufficientPrivilege("permission denied for table users"),
            "the database allows it to its owner alone: permission denied for table users",
        ),
        (
            psycopg.errors.UndefinedTable('relation "log_head" does not exist\nLINE 1: ...'),
            'the database has another shape (messenger migrate): relation "log_head" does not',
        ),
        (OSError(errno.ENAMETOOLONG, "File name too long", "out.jsonl"), "out.jsonl: File name"),
        (Unavailable("too many wait"), "too many wait"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_operator_can_mend_is_a_line(error: Exception, said: str) -> None:
    async def fails() -> None:
        raise error

    with pytest.raises(click.ClickException) as failure:
        cli._run(fails())
    assert failure.value.message.startswith(said)
    assert "\n" not in failure.value.message


def test_what_nobody_can_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="it is broken"):
        cli._run(breaks())


ROW = "the row is ('its values')"


async def breaks() -> None:
    raise ValueError(f"it is broken\n{ROW}")


def test_what_nobody_expected_ends_a_process_in_its_log_without_values_of_rows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli._run_logging("relay", settings(NOBODY, "nats://127.0.0.1:9"), breaks())
    said = capsys.readouterr().err
    traced, last = map(json.loads, said.splitlines())
    assert (ended.value.code, ROW in said) == (1, False)
    assert "in breaks" in traced["traceback"]
    assert (last["event"], last["reason"]) == ("process_ends", "it is broken")
    log = Log(tmp_path / "relay.log")
    os.close(log.open())
    log.path.write_text(said)
    assert log.complaint() == "it is broken"
