"""`messenger import irc`: the parts it needs, the files it is given, and what it prints.

Of the files given, those called `.annotation.txt` are annotations: `--replies A B C` of a
shell's `*` gives only A to the option. Exit code 0 if every file was imported, else 1.
"""

import sys
from pathlib import Path

from rich.console import Console

from api.irc.accounts import LockedPasswords
from api.irc.files import ANNOTATION_SUFFIX
from api.irc.importer import run as run_import
from api.writing import writing
from infra.errors import Stopped
from infra.settings import Settings

# For pipes and files: what is wider than a terminal's 80 stays on its line.
WIDTH_CHARACTERS = 120


async def run(
    settings: Settings, given: list[Path], replies: list[Path], report_file: Path | None
) -> int:
    """Raises Unavailable, and Stopped where an operator has to act."""
    if report_file is not None:
        _check_writable(report_file)
    logs = [path for path in given if not path.name.endswith(ANNOTATION_SUFFIX)]
    annotations = [path for path in given if path.name.endswith(ANNOTATION_SUFFIX)]
    passwords = LockedPasswords(rounds=settings.bcrypt_rounds)
    async with writing(settings, name="import", passwords=passwords) as parts:
        report = await run_import(
            logs, [*replies, *annotations], executor=parts.executor, console=Console(stderr=True)
        )
    if report_file is not None:
        report.write(report_file)
    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else WIDTH_CHARACTERS)
    report.print(console, written_to=report_file)
    return 1 if report.faults else 0


def _check_writable(path: Path) -> None:
    """Now, not after the import."""
    try:
        path.open("ab").close()
    except OSError as error:
        raise Stopped(f"the report can't be written to {path}: {error.strerror}") from error
