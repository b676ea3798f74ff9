"""`messenger status`: how the whole is, once or again and again, for people and for scripts.

On a terminal `--watch` draws the screen anew; else it writes a line, or with `--json` an object, each
time. It ends with Ctrl-C or SIGTERM, and goes on while PostgreSQL or NATS is away, and says so.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress
from datetime import datetime
from typing import NamedTuple

import msgspec
from psycopg import InterfaceError
from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from infra import database, progress, skips
from infra.bus import Bus
from infra.database import DOWN, Connection
from infra.errors import MessengerError
from infra.overview import Observer, ReadModel, Relay, State
from infra.processes import Process
from infra.settings import Settings
from infra.skips import Skip
from projections import NAMES

SKIPS_SHOWN = 5
PIPED_CHARACTERS = 400
LOG = "log"
UNITS = ("B", "kB", "MB", "GB", "TB")


class Rates:
    """Events a second of each that moves, since the look before."""

    def __init__(self) -> None:
        self._at: datetime | None = None
        self._positions: dict[str, int] = {}

    def of(self, state: State) -> dict[str, float]:
        positions = dict(_positions(state))
        rates: dict[str, float] = {}
        seconds = (state.at - self._at).total_seconds() if self._at else 0.0
        if seconds > 0:
            rates = {
                name: (position - self._positions[name]) / seconds
                for name, position in positions.items()
                if position >= self._positions.get(name, position + 1)
            }
        if positions:
            self._at, self._positions = state.at, positions
        return rates


def _positions(state: State) -> Iterable[tuple[str, int]]:
    followers = [(LOG, state.position), ("relay", state.relay.position)]
    followers += [(item.name, item.position) for item in state.projections]
    return ((name, position) for name, position in followers if position is not None)


async def run_once(settings: Settings, *, as_json: bool) -> None:
    """Raises Unavailable."""
    async with (
        await database.connect(settings.database_url, name="status") as connection,
        Bus.of(settings, name="status") as bus,
    ):
        state = await Observer(bus, NAMES).look(connection)
        skipped = {item.name: await _last_skips(connection, item) for item in state.projections}
    if as_json:
        _write(_json(state))
    else:
        table = _table(state, {}, skipped)
        _console().print(Group(table, _processes(state), *_rest(state), *_problems(state)))


async def run_watch(settings: Settings, *, every_seconds: float, as_json: bool) -> None:
    stop = _stop_signal()
    console, rates, drawn = _console(), Rates(), Group()
    async with aclosing(_states(settings, every_seconds, stop)) as states:
        if not console.is_terminal or as_json:
            async for state in states:
                _write(_json(state) if as_json else _line(state, rates.of(state)))
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            async for state in states:
                drawn = _screen(state, rates.of(state))
                live.update(drawn, refresh=True)
    console.print(drawn)


async def _states(
    settings: Settings, every_seconds: float, stop: asyncio.Event
) -> AsyncGenerator[State, None]:
    """Until it is to stop; the first at once."""
    connection: Connection | None = None
    async with Bus.of(settings, name="status") as bus:
        observer = Observer(bus, NAMES)
        while not stop.is_set():
            try:
                connection = connection or await _connected(settings)
                state = await observer.look(connection)
            except (MessengerError, InterfaceError, *DOWN) as error:
                state = observer.away(error)
                await _close(connection)
                connection = None
            yield state
            await _wait(stop, every_seconds)
    await _close(connection)


async def _connected(settings: Settings) -> Connection:
    return await database.connect(settings.database_url, name="status")


async def _close(connection: Connection | None) -> None:
    if connection is not None:
        await connection.close()


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _screen(state: State, rates: dict[str, float]) -> Group:
    """What a low screen cuts off comes last; a wide one has the tables beside each other."""
    tables = Columns([_table(state, rates, {}), _processes(state)])
    return Group(*_problems(state), *_rest(state), tables)


def _console() -> Console:
    console = Console(highlight=False)
    # Scripts read it by line: only a terminal makes it narrow.
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPED_CHARACTERS)
    return console


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _json(state: State) -> str:
    return msgspec.json.encode(state).decode()


def _line(state: State, rates: dict[str, float]) -> str:
    at = state.at.isoformat(timespec="seconds").replace("+00:00", "Z")
    told = "; ".join(state.problems) or "all is well"
    if state.position is None:
        return f"{at} {told}"
    slowest = max(state.projections, key=lambda item: item.lag_seconds)
    return (
        f"{at} log {state.position}{_per_second(rates.get(LOG), ' ')}"
        f" relay {_number(state.relay.lag_events)} behind"
        f" {slowest.name} {slowest.lag_events} behind ({slowest.lag_seconds:.1f} s): {told}"
    )


class _Row(NamedTuple):
    what: str
    position: str
    lag: str = ""
    behind: str = ""
    a_second: str = ""
    state: str = ""


def _table(state: State, rates: dict[str, float], skipped: dict[str, list[Skip]]) -> Table:
    title = None if state.epoch is None else f"epoch {state.epoch}"
    table = Table(*(name.replace("_", " ") for name in _Row._fields), title=title)
    if state.position is None:
        table.add_row(LOG, "", "", "", "", escape(state.problems[0]))
        return table
    table.add_row(*_Row(LOG, str(state.position), a_second=_per_second(rates.get(LOG))))
    table.add_row(*_relay(state.relay, rates.get("relay")))
    for item in state.projections:
        table.add_row(*_model(item, rates.get(item.name)))
        for skip in skipped.get(item.name, ()):
            table.add_row(*_Row("", "", state=escape(str(skip))))
    return table


def _relay(relay: Relay, rate: float | None) -> _Row:
    return _Row(
        "relay",
        _number(relay.position),
        _number(relay.lag_events),
        _seconds(relay.lag_seconds),
        _per_second(rate),
        escape(relay.reason or relay.state),
    )


def _model(item: ReadModel, rate: float | None) -> _Row:
    return _Row(
        item.name,
        str(item.position),
        str(item.lag_events),
        _seconds(item.lag_seconds),
        _per_second(rate),
        _state(item),
    )


def _state(item: ReadModel) -> str:
    if item.failure is None:
        return item.state
    failed = progress.failed(item.failure.position, item.failure.type, item.failure.reason)
    return escape(
        f"{failed}; mend the cause, or: "
        f"messenger project skip {item.name} {item.failure.position} --why …"
    )


def _processes(state: State) -> Table:
    table = Table("process", "who", "last heard", "connected", "state")
    for one in state.processes:
        table.add_row(*_process(one))
    return table


def _rest(state: State) -> Iterable[str]:
    if state.upkeep is not None:
        yield (
            f"{state.people_connected} people connected; "
            f"{state.upkeep.unfinished_uploads} uploads under way; "
            f"removal of objects {state.upkeep.removals_lag_events} events behind; "
            f"database {_bytes(state.database.size_bytes)}"
        )


def _problems(state: State) -> Iterable[str]:
    return (f"[bold red]![/bold red] {escape(problem)}" for problem in state.problems)


def _process(one: Process) -> tuple[str, ...]:
    heard, connected = _seconds(one.heard_seconds), _seconds(one.connected_seconds)
    state = "not seen" if one.process is None and one.state == "unknown" else one.state
    return one.role, escape(one.process or ""), heard, connected, state


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def _per_second(rate: float | None, before: str = "") -> str:
    return "" if rate is None else f"{before}{rate:.1f}/s"


def _bytes(value: int | None) -> str:
    """With the greatest unit that leaves a whole number before the point."""
    size, unit = float(value or 0), 0
    while size >= 1000 and unit < len(UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {UNITS[unit]}"


async def _last_skips(connection: Connection, item: ReadModel) -> list[Skip]:
    if item.skipped_events == 0:
        return []
    return (await skips.of(connection, item.name))[-SKIPS_SHOWN:]
