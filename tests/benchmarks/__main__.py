"""`python -m tests.benchmarks [NAME…]`: runs benchmarks and writes their table.

Exit code 1 if a target is missed. `--quick` only shows that they work: nothing is written.
"""

import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Protocol

import click
import uvloop

from tests.benchmarks import (
    append,
    fan_out,
    harness,
    http_send,
    importing,
    projectors,
    queries,
    replay,
    search,
    sending,
    stream,
    uploads,
)
from tests.benchmarks.harness import Report, console

RESULTS = Path(__file__).with_name("results.md")


class Benchmark(Protocol):
    def __call__(self, report: Report, *, is_quick: bool) -> Awaitable[None]: ...


BENCHMARKS: dict[str, Benchmark] = {
    "append": append.run,
    "fan_out": fan_out.run,
    "http_send": http_send.run,
    "projectors": projectors.run,
    "import": importing.run,
    "queries": queries.run,
    "search": search.run,
    "uploads": uploads.run,
    "stream": stream.run,
    "sending": sending.run,
    "replay": replay.run,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
@click.option("--quick", is_flag=True, help="Seconds instead of minutes; writes nothing.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=RESULTS, show_default=False
)
def main(names: tuple[str, ...], quick: bool, out: Path) -> None:
    reports = []
    for name in names or BENCHMARKS:
        console.print(f"[bold]{name}[/bold]")
        report = Report(name)
        uvloop.run(_run(BENCHMARKS[name], report, quick))
        reports.append(report)
        if not quick:
            harness.write([report], out)
    sys.exit(0 if quick or all(report.is_met for report in reports) else 1)


async def _run(benchmark: Benchmark, report: Report, is_quick: bool) -> None:
    await benchmark(report, is_quick=is_quick)


main()
