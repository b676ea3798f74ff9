"""What the command line's arguments may be: paths, names, times, an address, a password.

What is wrong with one is said in a line, with exit code 2.
"""

import os
import sys
from datetime import datetime
from math import isnan
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from projections import BY_NAME, NAMES, PROJECTIONS
from projections.projection import Projection

WATCH_SECONDS = 1.0


class Named(click.Path):
    """A path that says where; `-` is no file of ours, as images go beside it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("", "-"):
            self.fail(f"{value!r} is no path", param, ctx)
        return super().convert(value, param, ctx)


DATA_DIR = click.option(
    "--data-dir",
    type=Named(path_type=Path, file_okay=False),
    help="Where `messenger up` keeps everything; its run.json tells where the servers are.",
)


def projections_of(names: tuple[str, ...], everything: bool) -> list[Projection]:
    if everything == bool(names):
        raise click.UsageError(f"name projections ({', '.join(NAMES)}), or say --all")
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        raise click.UsageError(
            f"there is no projection {unknown[0]!r}; there are {', '.join(NAMES)}"
        )
    return [BY_NAME[name] for name in dict.fromkeys(names)] if names else list(PROJECTIONS)


def check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise click.UsageError(f"--url {url!r} is not an address such as http://127.0.0.1:8080")


def password_of(file: Path | None) -> str:
    """Never an argument or a setting: other processes could read it there."""
    if file == Path("-"):
        return _line_of_stdin()
    if file is not None:
        return (file.read_text(errors="replace").splitlines() or [""])[0]
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for the password: --password-file")
    asked: str = click.prompt("Password", hide_input=True)
    return asked


def _line_of_stdin() -> str:
    """Byte by byte: what comes after it is not ours to take."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(sys.stdin.fileno(), 1)):
        line += byte
    return line.decode(errors="replace").rstrip("\r\n")


def _check_until(until: str) -> None:
    if until.isdigit():
        return
    try:
        time = datetime.fromisoformat(until)
    except ValueError:
        raise click.UsageError(
            f"--until {until!r} is neither a position nor a time such as 2026-01-31T12:00:00Z"
        ) from None
    if time.tzinfo is None:
        raise click.UsageError(f"--until {until!r} needs its offset, such as a trailing Z")


def check_replay(
    until: str | None, into: str | None, follows_nothing: bool, *alternatives: bool
) -> None:
    if (until is None) != (into is None):
        raise click.UsageError("--until and --into go together")
    if follows_nothing:
        raise click.UsageError("--follow goes with --build-only")
    if sum([until is not None, *alternatives]) > 1:
        raise click.UsageError(
            "--until, --build-only, --back and --drop-retired exclude each other"
        )
    if until is not None and into is not None:
        _check_until(until)
        _check_schema(into)


def _check_schema(schema: str) -> None:
    reserved = schema in ("public", "information_schema") or schema.startswith(
        ("pg_", "aside_", "rebuild_", "retired_", "verify_")
    )
    if reserved or not schema.isidentifier() or len(schema) > 40:
        raise click.UsageError(f"--into {schema!r} can't be the name of a schema of your own")


def checked_why(why: str) -> str:
    from infra.skips import MAX_WHY_CHARACTERS

    why = " ".join(why.split())
    if not 0 < len(why) <= MAX_WHY_CHARACTERS or not why.isprintable():
        raise click.UsageError(f"--why says why, in 1 to {MAX_WHY_CHARACTERS} characters")
    return why


def checked_interval(watch: bool, every_seconds: float | None) -> float:
    if every_seconds is not None and not watch:
        raise click.UsageError("--every goes with --watch")
    if every_seconds is not None and isnan(every_seconds):
        raise click.UsageError("--every nan is no number of seconds")
    return WATCH_SECONDS if every_seconds is None else every_seconds


def refuse_what_is_no_text(argument: str) -> None:
    """It would fail wherever it is first written to."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(argument).decode(errors="replace")
        print(f"messenger: an argument is no UTF-8: {shown}", file=sys.stderr)
        sys.exit(2)
