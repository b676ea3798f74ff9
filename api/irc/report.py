"""What an import took, changed and refused: counts by file, and a note for each such line.

Every line of a file counts as one of taken, changed, unchanged (nothing to do: a join of one
who is in) and refused; `already` are those of them that an earlier run had brought in. All
notes go to a file that spills to disk beyond a few MB, so that a log of rubbish does not fill
the memory; the first of the lines refused and changed are kept for the screen.
"""

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from api.irc.parse import shown
from api.irc.plan import Outcome

MAX_SHOWN_NOTES = 50
MAX_NOTES_IN_MEMORY_BYTES = 4_000_000

COUNTS = (
    "lines",
    "taken",
    "changed",
    "unchanged",
    "refused",
    "already",
    "replies",
    "replies_refused",
)


class Fault(NamedTuple):
    """A file that was not imported."""

    file: str
    reason: str


class Note(NamedTuple):
    """Why a line was not simply taken; `line` counts from 1."""

    file: str
    line: int
    outcome: Outcome
    reason: str


class Count(msgspec.Struct):
    """How the lines of one file, and the links of its annotation, fared."""

    file: str
    lines: int = 0
    taken: int = 0
    changed: int = 0
    unchanged: int = 0
    refused: int = 0
    already: int = 0
    replies: int = 0
    replies_refused: int = 0

    def add(self, outcome: Outcome) -> None:
        self.lines += 1
        setattr(self, outcome, getattr(self, outcome) + 1)


class Report:
    """`faults` are files not imported: with any, the command answers that it failed."""

    def __init__(self) -> None:
        self.counts: list[Count] = []
        self.faults: list[Fault] = []
        self._shown: list[Note] = []
        self._notable = 0
        self._notes = tempfile.SpooledTemporaryFile(MAX_NOTES_IN_MEMORY_BYTES)  # noqa: SIM115
        weakref.finalize(self, self._notes.close)

    def total(self) -> Count:
        sums = {name: sum(getattr(count, name) for count in self.counts) for name in COUNTS}
        return Count("total", **sums)

    def note(self, note: Note) -> None:
        self._notes.write(msgspec.json.encode(note._asdict()) + b"\n")
        if note.outcome != "unchanged":
            self._notable += 1
            if len(self._shown) < MAX_SHOWN_NOTES:
                self._shown.append(note)

    def note_link(self, note: Note) -> None:
        """A link of an annotation: there are too many for the screen."""
        self._notes.write(msgspec.json.encode(note._asdict()) + b"\n")

    def write(self, path: Path) -> None:
        """JSON lines: notes (file, line, outcome, reason), then files refused, then counts."""
        with path.open("wb") as file:
            self._notes.seek(0)
            shutil.copyfileobj(self._notes, file)
            for fault in self.faults:
                file.write(msgspec.json.encode({**fault._asdict(), "outcome": "refused"}) + b"\n")
            for count in [*self.counts, self.total()]:
                file.write(msgspec.json.encode(count) + b"\n")

    def print(self, console: Console, *, written_to: Path | None = None) -> None:
        if self.counts:
            console.print(self._count_table())
        for note in self._shown:
            place = f"{note.file}:{note.line}"
            _print(console, f"{place}: {note.outcome}: {note.reason}")
        hidden = self._notable - len(self._shown) + self.total().replies_refused
        if hidden:
            where = f"all are in {written_to}" if written_to else "--report FILE writes all"
            _print(console, f"and {hidden:,} more lines and reply links: {where}")
        for fault in self.faults:
            _print(console, f"not imported: {fault.file}: {fault.reason}")

    def _count_table(self) -> Table:
        table = Table("file", box=None, pad_edge=False)
        for name in COUNTS:
            table.add_column(name.replace("_", " "), justify="right")
        for count in [*self.counts, self.total()]:
            numbers = [f"{getattr(count, name):,}" for name in COUNTS]
            table.add_row(Text(shown(count.file)), *numbers)
        return table


def _print(console: Console, line: str) -> None:
    console.print(Text(shown(line)), soft_wrap=True)
