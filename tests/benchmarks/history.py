"""Days of an IRC channel to import: the shared corpus, or as many made-up days without it."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import date, timedelta
from itertools import cycle, islice
from pathlib import Path

from tests.benchmarks import harness, system
from tests.benchmarks.workload import TEXTS

CORPUS = Path(__file__).parents[3] / "shared" / "data" / "ubuntu-irc"
TIMEOUT_SECONDS = 600.0
DAYS = 61
LINES_A_DAY = 1_390
NICKS_A_DAY = 250
NICKS = 4_000
FIRST_DAY = date(2005, 1, 1)


@contextmanager
def logs() -> Iterator[list[Path]]:
    """The files in the order of their days."""
    found = sorted(CORPUS.glob("*.raw.txt"))
    if found:
        yield found
        return
    with harness.scratch() as directory:
        yield [_made_up(directory, number) for number in range(DAYS)]


def name(files: list[Path]) -> str:
    kind = "days of ../shared" if files[0].parent == CORPUS else "made-up days"
    return f"{len(files)} {kind}, {count_lines(files):,} lines"


def count_lines(files: list[Path]) -> int:
    return sum(path.read_bytes().count(b"\n") for path in files)


@asynccontextmanager
async def importing(
    files: list[Path], environ: dict[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`messenger import irc` as it runs; the block's end waits for its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.cli", "import", "irc", *map(str, files)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**system.plain_environ(), **environ},
    )
    try:
        yield process
        await asyncio.wait_for(process.wait(), TIMEOUT_SECONDS)
        assert process.returncode == 0, "`messenger import irc` failed"
    finally:
        if process.returncode is None:
            process.kill()


def _made_up(directory: Path, number: int) -> Path:
    """People come as they first speak; every tenth line somebody leaves."""
    day = FIRST_DAY + timedelta(days=7 * number)
    nicks = [f"nick{(number * 97 + n) % NICKS}" for n in range(NICKS_A_DAY)]
    speakers = cycle(nicks)
    lines = []
    for n, text in enumerate(islice(cycle(TEXTS), LINES_A_DAY)):
        nick = next(speakers)
        clock = f"[{n // 60 % 24:02}:{n % 60:02}]"
        said = f"{clock} <{nick}> {text}"
        lines.append(said if n % 10 else f"=== {nick} [n=user@host] has left #ubuntu []")
    path = directory / f"{day.isoformat()}.raw.txt"
    path.write_text("\n".join(lines) + "\n")
    return path
