"""`messenger up`: everything on one machine, run and watched by one process.

Takes the data directory and the API's port first, so that a second `up` or a taken port changes
nothing; then starts what servers are not given by URL, migrates, and starts relay, projectors,
API and maintenance as children. What dies is started again with growing pauses; API processes
inherit the one listening socket, so a restart loses no connection. While all is ready, `run.json`
in the data directory says where everything is. SIGINT or SIGTERM stops it in order, API first and
PostgreSQL last; a failed start stops what had started, says why in one line and answers 1.
"""

import asyncio
import contextlib
import errno
import importlib
import itertools
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from api.up.directory import absolute, locked
from api.up.given import reach_given
from api.up.kept import Kept, Program, Unit, say
from infra.embedded.nats import Nats
from infra.embedded.postgres import Postgres
from infra.embedded.process import (
    Log,
    Server,
    StartError,
    first_bytes,
)
from infra.embedded.s3 import S3
from infra.settings import PREFIX, RUN_FILE, SERVERS, SettingError, Settings, load
from infra.settings import S3 as S3_SETTINGS
from infra.urls import without_password

READY_TIMEOUT_SECONDS = 60.0
READY_POLL_SECONDS = 0.05
START_DEATHS_MAX = 5
BIND_ATTEMPTS_MAX = 10
BIND_RETRY_SECONDS = 0.1
READY_REQUEST = b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
LISTEN_BACKLOG = 2048
LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


async def run(
    *, data_dir: Path, host: str, port: int, workers: int, environ: Mapping[str, str]
) -> int:
    """Runs until a signal; the exit code."""
    began = time.monotonic()
    stop = _stop_signal()
    try:
        directory = absolute(data_dir)
        settings = _settings(environ, directory)
        with locked(directory):
            (directory / RUN_FILE).unlink(missing_ok=True)
            async with _listening(host, port) as listener:
                up = _Up(directory, settings, environ, listener, workers)
                await _run_until(stop, up, began)
    except (SettingError, StartError) as error:
        say(str(error))
        return 1
    return 0


async def _run_until(stop: asyncio.Event, up: "_Up", began: float) -> None:
    stopping = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(up.start())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            up.show(time.monotonic() - began)
            await stopping
    finally:
        stopping.cancel()
        starting.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await up.stop()


class Addresses(NamedTuple):
    """Where everything is: what run.json says besides process ids."""

    api_url: str
    database_url: str
    nats_url: str
    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: str


class _Up:
    """One installation: the units in the order they start in, and where everything is."""

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        environ: Mapping[str, str],
        listener: socket.socket,
        workers: int,
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._environ = environ
        self._listener = listener
        self._workers = workers
        self._stages: list[list[Kept]] = []
        # Of each program's own, so that a restart changes no address.
        self._scraped: dict[str, socket.socket] = {}
        self._addresses: Addresses | None = None
        self._is_ready = False
        self._answer = ""

    async def start(self) -> None:
        """Comes back when all of it is ready to serve."""
        loading = asyncio.create_task(asyncio.to_thread(importlib.import_module, "infra.migrate"))
        self._addresses = await self._start_servers()
        await loading
        self._scraped = {name: _listen(LOOPBACK, 0) for name in self._programs()}
        await _migrate(self._addresses.database_url)
        await self._start_stages(
            [self._program("relay", "relay"), *self._projectors()], self._api()
        )
        await self._until_ready()
        # Nobody waits for it.
        await self._start_stages([self._program("maintain", "maintain")])
        self._is_ready = True
        self._publish()

    async def stop(self) -> None:
        """Stops what was started, last things first."""
        self._is_ready = False
        (self._directory / RUN_FILE).unlink(missing_ok=True)
        while self._stages:
            await asyncio.gather(*(kept.stop() for kept in self._stages.pop()))
        for listener in self._scraped.values():
            listener.close()

    def show(self, seconds: float) -> None:
        """Tells the operator where everything is."""
        from rich.console import Console
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for name, value in self._shown():
            table.add_row(f"[bold]{name}[/bold]", value)
        console = Console()
        console.print(table, soft_wrap=True)
        console.print(f"ready in {seconds:.1f} s; Ctrl-C stops it", highlight=False)

    def _shown(self) -> list[tuple[str, str]]:
        addresses = self._known
        return [
            ("API", addresses.api_url),
            ("PostgreSQL", without_password(addresses.database_url)),
            ("NATS", without_password(addresses.nats_url)),
            ("S3", addresses.s3_endpoint),
            ("Metrics", f"{addresses.api_url}/metrics, of all {len(self._scraped)} processes"),
            ("Addresses", str(self._directory / RUN_FILE)),
            ("Logs", str(self._directory / "logs")),
        ]

    @property
    def _known(self) -> Addresses:
        if self._addresses is None:
            raise StartError("the servers have not started")
        return self._addresses

    @property
    def _all(self) -> list[Kept]:
        return [kept for stage in self._stages for kept in stage]

    async def _start_stages(self, *stages: list[Kept]) -> None:
        """All at once; they count as started before they are, so that a stop finds them."""
        self._stages.extend(stages)
        try:
            async with asyncio.TaskGroup() as group:
                for kept in itertools.chain(*stages):
                    group.create_task(kept.start())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _start_servers(self) -> Addresses:
        """Those whose addresses are not given; PostgreSQL first, so that it is stopped last."""
        given = self._settings
        postgres = None if given.database_url else Postgres(self._directory)
        nats = None if given.nats_url else Nats(self._directory)
        s3 = None if given.s3_endpoint else S3(self._directory, bucket=given.s3_bucket)
        units: dict[str, Server | None] = {"postgres": postgres, "nats": nats, "s3": s3}
        kept = {name: self._kept(name, unit) for name, unit in units.items() if unit is not None}
        first = [kept.pop("postgres")] if postgres else []
        await reach_given(given)
        await self._start_stages(first, list(kept.values()))
        return Addresses(
            api_url=_api_url(self._listener),
            database_url=postgres.url if postgres else given.database_url,
            nats_url=nats.url if nats else given.nats_url,
            s3_endpoint=s3.endpoint if s3 else given.s3_endpoint,
            s3_access_key=s3.access_key if s3 else given.s3_access_key,
            s3_secret_key=s3.secret_key if s3 else given.s3_secret_key,
        )

    def _kept(self, name: str, unit: Unit) -> Kept:
        return Kept(name, unit, self._publish)

    def _programs(self) -> list[str]:
        """The names of all our processes but this one."""
        projectors = [f"project-{name}" for name in _projections()]
        return ["relay", *projectors, *self._api_names(), "maintain"]

    def _program(self, name: str, *arguments: str, pass_fds: Sequence[int] = ()) -> Kept:
        log = Log(self._directory / "logs" / f"{name}.log")
        scraped = self._scraped[name].fileno()
        environ = self._child_environ() | {f"{PREFIX}METRICS_ADDRESS": f"fd:{scraped}"}
        return self._kept(name, Program(arguments, log, environ, [*pass_fds, scraped]))

    def _projectors(self) -> list[Kept]:
        return [self._program(f"project-{name}", "project", name) for name in _projections()]

    def _api(self) -> list[Kept]:
        descriptor = self._listener.fileno()
        return [
            self._program(name, "api", "--fd", str(descriptor), pass_fds=[descriptor])
            for name in self._api_names()
        ]

    def _api_names(self) -> list[str]:
        if self._workers == 1:
            return ["api"]
        return [f"api-{number}" for number in range(1, self._workers + 1)]

    def _metrics_addresses(self) -> dict[str, str]:
        ports = {name: one.getsockname()[1] for name, one in self._scraped.items()}
        return {name: f"{LOOPBACK}:{port}" for name, port in ports.items()}

    def _child_environ(self) -> dict[str, str]:
        peers = [f"{name}={address}" for name, address in self._metrics_addresses().items()]
        host, port = self._listener.getsockname()[:2]
        ours = {
            **{name: value for name, value in self._known._asdict().items() if name in SERVERS},
            "data_dir": str(self._directory),
            "host": host,
            "port": str(port),
            "metrics_peers": ",".join(peers),
        }
        return {**self._environ, **{f"{PREFIX}{name.upper()}": ours[name] for name in ours}}

    async def _until_ready(self) -> None:
        try:
            async with asyncio.timeout(READY_TIMEOUT_SECONDS):
                while not await self._is_answering():
                    self._refuse_deaths()
                    await asyncio.sleep(READY_POLL_SECONDS)
        except TimeoutError:
            limit = f"{READY_TIMEOUT_SECONDS:g} s"
            logs = self._directory / "logs"
            raise StartError(f"not ready after {limit}: {self._answer} (logs: {logs})") from None

    async def _is_answering(self) -> bool:
        url = urlsplit(self._known.api_url)
        answer = await first_bytes(url.hostname or "", url.port or 0, READY_REQUEST)
        head, _, body = answer.decode(errors="replace").partition("\r\n\r\n")
        self._answer = body.strip() or "the API does not answer"
        return " 200 " in head.partition("\r\n")[0]

    def _refuse_deaths(self) -> None:
        for kept in self._all:
            if kept.deaths >= START_DEATHS_MAX:
                last = kept.unit.log.complaint()
                raise StartError(
                    f"{kept.name} does not stay up: {last} (log: {kept.unit.log.path})"
                )

    def _publish(self) -> None:
        """Writes run.json anew; only while all of it is true."""
        if not self._is_ready:
            return
        pids = {kept.name: kept.unit.pid for kept in self._all}
        path = self._directory / RUN_FILE
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            run = {**self._known._asdict(), "pids": pids, "metrics": self._metrics_addresses()}
            json.dump(run, file, indent=2)
        new.replace(path)


def _projections() -> tuple[str, ...]:
    """Imported when needed: the data directory is looked at first."""
    names: tuple[str, ...] = importlib.import_module("projections").NAMES
    return names


def _settings(environ: Mapping[str, str], directory: Path) -> Settings:
    """The servers' addresses in it are those of servers that are not ours to run."""
    needs = S3_SETTINGS if environ.get(f"{PREFIX}S3_ENDPOINT") else ()
    return load(environ, directory, needs=needs, looks_for_running=False)


def _stop_signal() -> asyncio.Event:
    """Set by any of the signals, as often as they come."""
    stop = asyncio.Event()
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        signals.append(signal.SIGHUP)
    for number in signals:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


@contextlib.asynccontextmanager
async def _listening(host: str, port: int) -> AsyncIterator[socket.socket]:
    """The API's socket; tried more than once, as children of a killed `up` may just be going."""
    for attempt in range(1, BIND_ATTEMPTS_MAX + 1):
        try:
            listener = _listen(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise StartError(f"can not listen on {host}:{port}: {error.strerror}") from None
            if attempt == BIND_ATTEMPTS_MAX:
                raise StartError(f"port {port} on {host} is in use by another process") from None
            await asyncio.sleep(BIND_RETRY_SECONDS)
        else:
            with listener:
                yield listener
            return


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address, family=family, backlog=LISTEN_BACKLOG)


def _api_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = EVERY_ADDRESS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _migrate(database_url: str) -> None:
    """Imported when needed, as above."""
    from infra.database import first_line
    from infra.migrate import upgrade

    try:
        await asyncio.to_thread(upgrade, database_url)
    except Exception as error:
        raise StartError(f"migration failed: {first_line(error)}") from error
