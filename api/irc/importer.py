"""Carries out the plans of days through the command side, some hundred commands at once.

Commands start in the order of the lines, and the appender keeps the order in which they come,
so the log has a chat's events in the order of its lines. What may not overtake:

- what follows a change of the group, as it is decided by who is in;
- a reply: what it answers has to be in the log, and looking it up takes time;
- the reading at the end of the day.

On a day of which the log has nothing yet, only that reading waits. There the import alone writes:
what it decided counts for what follows at once (`Request.presumed`), and nothing is looked up.

Every command has a key made from its day and line. After an interruption the log holds a
beginning of the import; the next run is answered what was answered then, and goes on.
"""

import asyncio
from datetime import datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from api.irc import files
from api.irc.accounts import Accounts, TooManyNicks
from api.irc.parse import Nick, shown
from api.irc.pipeline import Flying, Pipeline, Result, carried_out
from api.irc.plan import BRIDGE, LinePlan, Planner, Step, first_lines
from api.irc.report import Count, Fault, Note, Report
from api.irc.times import times
from api.irc.usernames import user_id
from domain.chat import Chat
from domain.ids import chat_stream, receipt_stream, user_stream
from domain.refusals import Refusal
from infra.executor import Done, Executor, Request

# The executor has room for the states of a day this long, so none is ever waited for: a line
# brings at most two nicks with two states each, or a message and a nick.
MAX_PRESUMED_LINES = 10_000
PROGRESS_EVERY_LINES = 100


async def run(
    logs: list[Path], annotations: list[Path], *, executor: Executor, console: Console
) -> Report:
    """Imports all files that it can; the others are the report's faults.

    `console` is for the progress bar, so one for stderr. Raises Unavailable if the log can't
    be written; what was done is kept, and the same call again goes on.
    """
    report = Report()
    sources, faults = await asyncio.to_thread(files.find, logs, annotations)
    report.faults += faults
    with _progress(console) as progress:
        bar = Bar(progress, total=sum(source.lines for source in sources))
        accounts = Accounts(executor)
        for source in sources:
            try:
                content = await asyncio.to_thread(files.load, source)
                day = DayImport(source, content, executor, report)
                await day.run(accounts, bar)
            except (files.Unusable, TooManyNicks) as error:
                report.faults.append(Fault(str(source.path), str(error)))
    return report


class DayImport:
    """One day on its way into its group."""

    def __init__(
        self, source: files.Source, content: files.Content, executor: Executor, report: Report
    ) -> None:
        self._source = source
        self._content = content
        self._executor = executor
        self._report = report
        self._first_lines = first_lines(content.lines)
        self._count = Count(source.path.name)
        self._is_alone = False

    async def run(self, accounts: Accounts, bar: "Bar") -> None:
        planner = Planner(self._source.day, self._content.lines, self._content.replies.answered)
        await accounts.register(self._first_lines, self._start_time(), self._note_nick)
        self._report.counts.append(self._count)
        self._note_links()
        self._is_alone = await self._prepare()
        async with Pipeline() as pipeline:
            for plan in planner.line_plans():
                await self._take(plan, pipeline)
                bar.line()
            await pipeline.settle()
            for step in planner.end_of_day():
                tasks = await pipeline.begin(partial(self._settle_reading, step))
                tasks.append(self._start(step))
            await pipeline.settle()
        bar.flush()

    def _start_time(self) -> datetime:
        return next(times(self._source.day.date, self._content.lines))

    async def _prepare(self) -> bool:
        """Fetches at once what the day's commands look at. Whether nobody else wrote to it."""
        chat_id = self._source.day.chat_id
        users = [BRIDGE, *map(user_id, self._first_lines)]
        await self._executor.refresh(
            [*map(user_stream, users), *(receipt_stream(chat_id, user) for user in users)]
        )
        chat: Chat = await self._executor.state(chat_stream(chat_id))
        return not chat.exists and len(self._content.lines) <= MAX_PRESUMED_LINES

    async def _take(self, plan: LinePlan, pipeline: Pipeline) -> None:
        tasks = await pipeline.begin(partial(self._settle, plan))
        for step in plan.steps:
            if plan.answers is not None and not self._is_alone:
                await pipeline.landed()
            tasks.append(self._start(step))
            if not self._is_alone and (step.kind != "send" or plan.answers is not None):
                await tasks[-1]

    def _start(self, step: Step) -> Flying:
        presumed = self._is_alone and step.kind != "read"
        request = Request(step.command, step.actor, step.key, now=step.at, presumed=presumed)
        return asyncio.create_task(carried_out(self._executor, request))

    def _settle(self, plan: LinePlan, results: list[Result]) -> None:
        outcome, reasons = plan.outcome, plan.reasons
        refusals = tuple(_reason(result) for result in results if isinstance(result, Refusal))
        if refusals:
            outcome, reasons = "refused", (*refusals, *reasons)
        self._count.add(outcome)
        self._count.already += bool(results) and all(map(_is_replayed, results))
        self._count.replies += plan.answers is not None and not refusals
        if outcome != "taken":
            self._report.note(Note(self._count.file, plan.number, outcome, "; ".join(reasons)))

    def _settle_reading(self, step: Step, results: list[Result]) -> None:
        for result in results:
            if isinstance(result, Refusal):
                reason = f"at the end of the day {step.actor} could not read: {_reason(result)}"
                self._report.note(Note(self._count.file, self._count.lines, "refused", reason))

    def _note_nick(self, nick: Nick, what: str) -> None:
        line = self._first_lines[nick]
        self._report.note(Note(self._count.file, line, "changed", f"{shown(nick)}: {what}"))

    def _note_links(self) -> None:
        refused = self._content.replies.refused
        self._count.replies_refused = len(refused)
        file = self._source.annotation.name if self._source.annotation else ""
        for link in refused:
            self._report.note_link(Note(file, link.number, "refused", link.reason))


class Bar:
    """Moves the progress bar now and then: moving it costs more than a line."""

    def __init__(self, progress: Progress, *, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("importing", total=total)
        self._lines = 0

    def line(self) -> None:
        self._lines += 1
        if self._lines == PROGRESS_EVERY_LINES:
            self.flush()

    def flush(self) -> None:
        self._progress.advance(self._task, self._lines)
        self._lines = 0


class LinesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} lines/s", style="progress.data.speed")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        LinesPerSecond(),
        TimeRemainingColumn(),
        console=console,
    )


def _is_replayed(result: Result) -> bool:
    return isinstance(result, Done) and result.replayed


def _reason(refusal: Refusal) -> str:
    return f"{refusal.code}: {refusal.detail}"
