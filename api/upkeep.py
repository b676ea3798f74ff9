"""What an operator does to read models and the log: replay, verify, skip, new epoch, events."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from api import at_rest
from api.daemons import keyring, scraped
from infra import database, event_log, history, metrics, replay, skips, verify
from infra.bus import Bus
from infra.database import Connection
from infra.errors import Unavailable
from infra.metrics import ReplayMetrics
from infra.priority import CATCHING_UP, give_way
from infra.relay import payload
from infra.settings import Settings
from infra.skips import Skip
from projections.projection import Projection

EVENTS_PAGE = 500
FOLLOW_POLL_SECONDS = 0.25

EVENTS = """
    SELECT position, event_id::text, stream, stream_version, type, schema_version, data::text,
        metadata::text, recorded_at
    FROM event_log
    WHERE position > %(after)s
        AND position <= %(up_to)s
        AND (%(stream)s::text IS NULL OR stream = %(stream)s)
        AND (%(type)s::text IS NULL OR type = %(type)s)
    ORDER BY position
    LIMIT %(limit)s
"""


def progress_bar() -> Progress:
    """Position, rate and time left, on stderr: stdout is for results."""
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:>9}/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class Bar:
    """One line of the progress bar, fed with positions; and the same in the metrics."""

    def __init__(
        self, progress: Progress, name: str, reported: ReplayMetrics | None = None
    ) -> None:
        self._progress = progress
        self._name = name
        self._reported = reported or ReplayMetrics()
        self._task: TaskID = progress.add_task(name, total=None, rate="")

    def __call__(self, position: int, up_to: int) -> None:
        task = self._progress.tasks[self._task]
        rate = f"{task.speed:,.0f}" if task.speed else ""
        self._progress.update(self._task, completed=position, total=up_to, rate=rate)
        self._reported.reached(self._name, position, up_to)


@asynccontextmanager
async def reporting(settings: Settings) -> AsyncIterator[ReplayMetrics]:
    """Served for as long as it takes, where MESSENGER_METRICS_ADDRESS says so and is free: a daemon
    started with the same settings may be there, which is no reason not to do the work."""
    registry = metrics.registry()
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(scraped(settings, registry))
        except Unavailable as error:
            print(f"metrics are not served: {error}", file=sys.stderr)
        yield ReplayMetrics(registry)


async def run_replay(
    settings: Settings, projections: Sequence[Projection], *, back: bool, full_speed: bool
) -> None:
    if not full_speed:
        give_way(CATCHING_UP)
    url = settings.database_url
    swapped, done = (replay.back, "back") if back else (replay.replay, "rebuilt")
    async with reporting(settings) as reported, keyring(settings) as keys:
        with progress_bar() as progress:
            for projection in projections:
                bar = Bar(progress, projection.name, reported)
                swap = await swapped(
                    projection, url=url, keyring=keys, progress=bar, full_speed=full_speed
                )
                print(
                    f"{projection.name}: {done} up to {swap.position}, "
                    f"swapped in {swap.seconds * 1000:.0f} ms",
                    flush=True,
                )
                _show_skips(swap.skipped)


async def run_build(
    settings: Settings, projections: Sequence[Projection], *, follow: bool, full_speed: bool
) -> None:
    if not full_speed:
        give_way(CATCHING_UP)
    url = settings.database_url
    async with (
        reporting(settings) as reported,
        keyring(settings) as keys,
        AsyncExitStack() as stack,
    ):
        built = []
        with progress_bar() as progress:
            for projection in projections:
                bar = Bar(progress, projection.name, reported)
                copy = await stack.enter_async_context(
                    replay.built(
                        projection, url=url, keyring=keys, progress=bar, full_speed=full_speed
                    )
                )
                built.append((copy, bar))
                print(
                    f"{projection.name}: built up to {copy.position} in schema {copy.schema}",
                    flush=True,
                )
            if follow:
                await asyncio.gather(*(replay.follow(copy, bar) for copy, bar in built))


async def run_replay_until(
    settings: Settings, projections: Sequence[Projection], until: str, schema: str
) -> None:
    async with await database.connect(settings.database_url, name="replay") as connection:
        position = await _position(connection, until)
    async with reporting(settings) as reported, keyring(settings) as keys:
        with progress_bar() as progress:
            for projection in projections:
                past = await replay.as_of(
                    projection,
                    url=settings.database_url,
                    keyring=keys,
                    until=position,
                    schema=schema,
                    progress=Bar(progress, projection.name, reported),
                )
                print(f"{projection.name}: as of {position} in schema {schema}")
                _show_skips(past.skipped)


async def run_drop_retired(settings: Settings, projections: Sequence[Projection]) -> None:
    async with await database.connect(settings.database_url, name="replay") as connection:
        for projection in projections:
            await replay.drop_retired(projection, connection)


async def run_verify(settings: Settings, projections: Sequence[Projection]) -> int:
    """The exit code: 1 if any row differs."""
    differing = 0
    url = settings.database_url
    async with reporting(settings) as reported, keyring(settings) as keys:
        with progress_bar() as progress:
            for projection in projections:
                bar = Bar(progress, projection.name, reported)
                verdict = await verify.verify(projection, url=url, keyring=keys, progress=bar)
                differing += verdict.differing
                _show_verdict(verdict)
    return 1 if differing else 0


def _show_verdict(verdict: verify.Verdict) -> None:
    result = f"{verdict.differing} rows differ" if verdict.differing else "equal"
    print(f"{verdict.projection}: {verdict.rows} rows at position {verdict.position}: {result}")
    _show_skips(verdict.skipped)
    for difference in verdict.shown:
        print(f"  {difference.table}")
        print(f"    live    {difference.live or 'no such row'}")
        print(f"    rebuilt {difference.rebuilt or 'no such row'}")


def _show_skips(skipped: list[Skip]) -> None:
    for skip in skipped:
        print(f"  {skip}")


async def run_skip(settings: Settings, projection: Projection, position: int, why: str) -> None:
    url = settings.database_url
    async with await database.connect(url, name="skip") as connection:
        skip, is_new = await skips.record(connection, projection.name, position, why=why)
    told = "goes on" if is_new else "goes on already"
    print(f"{projection.name}: {told} {skip}")


async def run_new_epoch(settings: Settings) -> None:
    """With the servers of the data directory, where no others are given or running."""
    async with (
        at_rest.started(settings) as addressed,
        await database.connect(addressed.database_url, name="new epoch") as connection,
        Bus.of(addressed, name="new epoch") as bus,
    ):
        head = await history.new_epoch(bus, connection)
    print(f"epoch {head.epoch} begins after position {head.position}")


async def run_events(
    settings: Settings, *, stream: str | None, type_name: str | None, after: int, follow: bool
) -> None:
    """One JSON object a line, fields named as the columns of event_log; sealed stays sealed."""
    async with await database.connect(settings.database_url, name="events") as connection:
        while True:
            up_to = (await event_log.head(connection)).position
            while rows := await _page(connection, stream, type_name, after, up_to):
                for row in rows:
                    sys.stdout.write(_line(row))
                sys.stdout.flush()
                after = rows[-1][0]
            after = max(after, up_to)
            if not follow:
                return
            await asyncio.sleep(FOLLOW_POLL_SECONDS)


async def _page(
    connection: Connection, stream: str | None, type_name: str | None, after: int, up_to: int
) -> list[Any]:
    parameters = {
        "after": after,
        "up_to": up_to,
        "stream": stream,
        "type": type_name,
        "limit": EVENTS_PAGE,
    }
    return await (await connection.execute(EVENTS, parameters)).fetchall()


def _line(row: tuple[Any, ...]) -> str:
    return payload(row).decode() + "\n"


async def _position(connection: Connection, until: str) -> int:
    """A position as it is, or the last one recorded by an RFC 3339 time."""
    if until.isdigit():
        head = (await event_log.head(connection)).position
        if int(until) > head:
            raise Unavailable(f"the log ends at {head}, before {until}")
        return int(until)
    return await event_log.position_at(connection, datetime.fromisoformat(until))
