"""What any command of `messenger` says of arguments and outputs that can't be: a line, no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

NO_TEXT = b"\xff"
SECONDS = 30.0


def messenger(*arguments: str | bytes, **given: int) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", *arguments],
        stdout=given.get("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
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
