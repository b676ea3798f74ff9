"""The files of an import: which day each one is, and what is in it.

A log is named after its day: `2004-11-15_03.raw.txt`, where what follows the date tells logs
of one day apart. Its annotation is the `.annotation.txt` beside it, unless others are named.
A file that can not be taken is a `Fault` with its reason, and costs no other file.
"""

import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import NamedTuple

from api.irc.links import Replies, replies
from api.irc.parse import Annotation, Line, parse_annotation, parse_log
from api.irc.plan import Day, first_lines
from api.irc.report import Fault

# A day of the busiest channels is a few MB.
MAX_FILE_BYTES = 32_000_000
MAX_LINES = 200_000
MAX_NAME_CHARACTERS = 64
# IRC began in 1988. The end leaves room for a log whose clock passes midnight at every line.
YEARS = range(1988, 2200)

LOG_SUFFIXES = (".raw.txt", ".txt", ".log")
ANNOTATION_SUFFIX = ".annotation.txt"

_NAME = re.compile(r"(\d{4}-\d{2}-\d{2})[a-zA-Z0-9_.-]*", re.ASCII)


class Unusable(Exception):
    """A file that can not be imported; the message says why."""


class Source(NamedTuple):
    path: Path
    day: Day
    annotation: Path | None
    lines: int


class Content(NamedTuple):
    lines: list[Line]
    replies: Replies


def find(logs: Iterable[Path], annotations: Iterable[Path]) -> tuple[list[Source], list[Fault]]:
    """The files in the order of their days. Everything is looked at before anything is done."""
    named, faults = _by_day(annotations)
    sources: dict[str, Source] = {}
    for path in logs:
        try:
            source = _source(path, named)
            if source.day.slug in {known.day.slug for known in sources.values()}:
                raise Unusable(f"another file for {source.day.slug} is given too")
            sources[source.day.name] = source
        except Unusable as unusable:
            faults.append(Fault(str(path), str(unusable)))
    strays = [path for name, path in named.items() if name not in sources]
    faults += [Fault(str(path), "it is the annotation of none of the logs") for path in strays]
    return sorted(sources.values(), key=lambda source: (source.day.date, source.day.name)), faults


def load(source: Source) -> Content:
    """Raises Unusable if a file is not as `find` saw it."""
    lines = _lines(source.path)
    links = Annotation([], [])
    if source.annotation is not None:
        links = parse_annotation(_read(source.annotation, may_be_empty=True))
    return Content(lines, replies(lines, links))


def _source(path: Path, named: dict[str, Path]) -> Source:
    day = _day(path)
    beside = path.with_name(day.name + ANNOTATION_SUFFIX)
    annotation = named.get(day.name) or (beside if beside.is_file() else None)
    return Source(path, day, annotation, len(_lines(path)))


def _by_day(annotations: Iterable[Path]) -> tuple[dict[str, Path], list[Fault]]:
    named: dict[str, Path] = {}
    faults = []
    for path in annotations:
        try:
            _read(path, may_be_empty=True)
            if named.setdefault(path.name.removesuffix(ANNOTATION_SUFFIX), path) != path:
                raise Unusable("another annotation of this day is given too")
        except Unusable as unusable:
            faults.append(Fault(str(path), str(unusable)))
    return named, faults


def _day(path: Path) -> Day:
    suffix = next((suffix for suffix in LOG_SUFFIXES if path.name.endswith(suffix)), "")
    name = path.name.removesuffix(suffix)
    match = _NAME.fullmatch(name)
    if match is None or len(name) > MAX_NAME_CHARACTERS:
        raise Unusable("its name is not that of a day, like 2004-11-15.raw.txt")
    try:
        day = date.fromisoformat(match[1])
    except ValueError:
        raise Unusable(f"there is no day {match[1]}") from None
    if day.year not in YEARS:
        raise Unusable(f"{match[1]} is not in the years {YEARS.start} to {YEARS.stop - 1}")
    return Day(name, day)


def _lines(path: Path) -> list[Line]:
    data = _read(path)
    if data.count(b"\n") > MAX_LINES:
        raise Unusable(f"it has more than {MAX_LINES:,} lines, which no day has")
    lines = parse_log(data)
    if not first_lines(lines):
        raise Unusable("it is not an IRC log: no line of it is a message or the like")
    return lines


def _read(path: Path, *, may_be_empty: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Unusable((error.strerror or type(error).__name__).lower()) from error
    if len(data) > MAX_FILE_BYTES:
        raise Unusable(f"it has more than {MAX_FILE_BYTES:,} bytes, which no day has")
    if not data and not may_be_empty:
        raise Unusable("it is empty")
    return data
