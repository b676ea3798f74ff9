"""Child processes that end when we do, and servers made of them.

A `Child` runs in a session of its own, so that Ctrl-C in a terminal reaches us and not it; it
writes to a log file; and the kernel ends it when this process ends, even by kill -9. A `Server`
is a child that listens: it is started when it really answers, keeps its port over restarts, and
says in one line, with its log's last words, why it did not start.

Children must be spawned from a thread that lives as long as they should: the main one.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
import sysconfig
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

LEASH = Path(__file__).with_name("leash.py")
LOG_BYTES_MAX = 32 * 1024 * 1024
LOG_TAIL_BYTES = 4096
PORT_MIN = 15_000
PORT_ATTEMPTS_MAX = 50
START_ATTEMPTS_MAX = 3
ANSWER_POLL_SECONDS = 0.02
ANSWER_TIMEOUT_SECONDS = 2.0
ANSWER_BYTES_MAX = 4096
SECRET_BYTES = 24
KILL_TIMEOUT_SECONDS = 10.0
ADDRESS_IN_USE = "address already in use"
FAILURE_WORDS = ("FATAL", "PANIC", "ERROR:", "[FTL]", "CRITICAL:", "Error: ", '"level":"error"')
LOOPBACK = "127.0.0.1"


class StartError(Exception):
    """A server or process did not start; the message is one line for the operator."""


class Identity(NamedTuple):
    """Whom a child runs as, where not as ourselves."""

    uid: int
    gid: int
    capability: int | None = None  # kept where files are out of reach otherwise


class Log:
    """A child's log file; remembers where this run began, so that its tail is of this run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin = 0

    def open(self) -> int:
        """A descriptor to append with; a file that grew too large is kept once, as NAME.log.1."""
        if self.path.exists() and self.path.stat().st_size > LOG_BYTES_MAX:
            self.path.replace(self.path.with_suffix(".log.1"))
        descriptor = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._begin = os.fstat(descriptor).st_size
        return descriptor

    def tail(self) -> str:
        """The last lines of this run."""
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._begin, end - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
        return ""

    def complaint(self) -> str:
        """The last line of this run that tells of a failure, or else its last line."""
        lines = [line.strip() for line in self.tail().splitlines() if line.strip()]
        failures = [line for line in lines if any(word in line for word in FAILURE_WORDS)]
        return _sentence((failures or lines or ["it said nothing"])[-1])


class _Line(msgspec.Struct):
    """One of our own logs that says why."""

    reason: str


def _sentence(line: str) -> str:
    try:
        return msgspec.json.decode(line, type=_Line).reason
    except msgspec.DecodeError:
        return line


class Child:
    """A running child process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """Waits for its end; answers the exit code, or minus the signal that ended it."""
        return await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def stop(self, number: signal.Signals, timeout_seconds: float) -> None:
        """Asks it to end, and kills it where it does not within the time."""
        self.send(number)
        try:
            await asyncio.wait_for(self.wait(), timeout_seconds)
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """Kills it with what it started in its session; initdb's own children outlive it else."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        await asyncio.wait_for(self.wait(), KILL_TIMEOUT_SECONDS)


async def spawn(
    command: Sequence[str],
    *,
    log: Log,
    environ: Mapping[str, str],
    death_signal: signal.Signals = signal.SIGKILL,
    identity: Identity | None = None,
    pass_fds: Sequence[int] = (),
    text_in: str | None = None,
) -> Child:
    """Starts a command on a leash; its output, and errors of the leash, go to the log."""
    output = log.open()
    try:
        process = await asyncio.create_subprocess_exec(
            *leashed(command, death_signal, identity),
            stdin=asyncio.subprocess.DEVNULL if text_in is None else asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd="/",
            env=environ,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    finally:
        os.close(output)
    if process.stdin is not None and text_in is not None:
        process.stdin.write(text_in.encode())
        process.stdin.close()
    return Child(process)


async def complete(
    command: Sequence[str],
    *,
    log: Log,
    environ: Mapping[str, str],
    identity: Identity | None,
    text_in: str | None = None,
    timeout_seconds: float,
) -> None:
    """Runs a command to its end; anything but success is a StartError."""
    child = await spawn(command, log=log, environ=environ, identity=identity, text_in=text_in)
    name = Path(command[0]).name
    try:
        code = await asyncio.wait_for(child.wait(), timeout_seconds)
    except TimeoutError:
        raise StartError(f"{name} was not done after {timeout_seconds:g} s: {log.path}") from None
    finally:
        if child.is_alive:
            await child.kill()
    if code != 0:
        raise StartError(f"{name} {ended(code)}: {log.complaint()} (log: {log.path})")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one server is run."""

    name: str
    directory: Path
    log: Log
    command: Callable[[int], Sequence[str]]
    answers: Callable[[int], Awaitable[bool]]
    environ: Callable[[], Mapping[str, str]]
    start_timeout_seconds: float
    stop_timeout_seconds: float
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL
    identity: Callable[[], Identity | None] = lambda: None
    before_start: Callable[[], Awaitable[None]] | None = None


@dataclass
class Server:
    """A server run by a plan; `start` again after it ended takes the same port."""

    plan: Plan
    port: int = 0
    _child: Child | None = field(default=None, init=False)

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def log(self) -> Log:
        return self.plan.log

    @property
    def _running(self) -> Child:
        if self._child is None:
            raise StartError(f"{self.plan.name} was never started")
        return self._child

    async def start(self) -> None:
        """Starts it and waits until it answers; StartError where it does not."""
        try:
            make_data_directory(self.plan.directory)
            if self.plan.before_start is not None:
                await self.plan.before_start()
            await self._start()
        except OSError as error:
            raise StartError(f"{self.plan.name}: {error}") from None

    async def _start(self) -> None:
        if self.port:
            await self._start_on(self.port)
            return
        for attempt in range(1, START_ATTEMPTS_MAX + 1):
            try:
                port = free_port()
                await self._start_on(port)
            except StartError:
                # Between our look and its bind another process may have taken the port.
                is_taken = ADDRESS_IN_USE in self.plan.log.tail().lower()
                if not is_taken or attempt == START_ATTEMPTS_MAX:
                    raise
            else:
                self.port = port
                return

    async def wait(self) -> int:
        return await self._running.wait()

    async def stop(self) -> None:
        """Stops it in good order, by force past the plan's time; nothing where it is not up."""
        if self._child is not None and self._child.is_alive:
            await self._child.stop(self.plan.stop_signal, self.plan.stop_timeout_seconds)

    async def kill(self) -> None:
        """kill -9, for tests of what follows."""
        await self._running.kill()

    async def _start_on(self, port: int) -> None:
        plan = self.plan
        child = self._child = await spawn(
            plan.command(port),
            log=plan.log,
            environ=plan.environ(),
            death_signal=plan.death_signal,
            identity=plan.identity(),
        )
        try:
            await asyncio.wait_for(self._until_answer(child, port), plan.start_timeout_seconds)
        except BaseException as error:  # cancelled too: nothing half-started stays
            await child.kill()
            if isinstance(error, TimeoutError):
                limit = f"{plan.start_timeout_seconds:g} s"
                raise StartError(f"{plan.name} did not answer in {limit}: {self._why()}") from None
            raise

    async def _until_answer(self, child: Child, port: int) -> None:
        while not await self.plan.answers(port):
            if not child.is_alive:
                code = await child.wait()
                raise StartError(f"{self.plan.name} {ended(code)} at start: {self._why()}")
            await asyncio.sleep(ANSWER_POLL_SECONDS)

    def _why(self) -> str:
        return f"{self.plan.log.complaint()} (log: {self.plan.log.path})"


S = TypeVar("S", bound=Server)


@contextlib.asynccontextmanager
async def while_running(server: S) -> AsyncIterator[S]:
    """Starts a server and stops it after the block, also where the start is interrupted."""
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


def ended(code: int) -> str:
    """An exit code in words."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def free_port() -> int:
    """A free TCP port below those that the kernel hands to outgoing connections.

    From that range, a client that retries a server while it is down would sooner or later be
    given the server's own port, connect to itself, and keep the server from coming back. Chance
    that nobody seeds picks it: processes with one seed would go for the same ports.
    """
    for _ in range(PORT_ATTEMPTS_MAX):
        port = PORT_MIN + secrets.randbelow(_ephemeral_port_min() - PORT_MIN)
        if _is_free(port):
            return port
    raise StartError(f"no free TCP port was found on {LOOPBACK}")


def _ephemeral_port_min() -> int:
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        low = 32_768
    return low if low > PORT_MIN else 65_536


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


async def first_bytes(host: str, port: int, say: bytes = b"") -> bytes:
    """What a server says first, or all it answers to `say`; empty where it does not in time."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
            return await _ask(host, port, say)
    except (OSError, TimeoutError):
        return b""


async def _ask(host: str, port: int, say: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(say)
        return await (_to_the_end(reader) if say else reader.read(ANSWER_BYTES_MAX))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _to_the_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readexactly(ANSWER_BYTES_MAX)
    except asyncio.IncompleteReadError as answer:
        return answer.partial


def make_data_directory(directory: Path) -> None:
    """Others may pass through it, as PostgreSQL under root must, and read nothing."""
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    (directory / "logs").mkdir(mode=0o700, exist_ok=True)


def program(name: str) -> str:
    """A program that a package has installed beside our Python."""
    path = Path(sysconfig.get_path("scripts"), name)
    if not path.exists():
        raise StartError(f"{name} is not installed: {path} does not exist")
    return str(path)


def secret_file(path: Path) -> str:
    """The secret kept in a file that only we can read; made at first."""
    if not path.exists():
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(SECRET_BYTES))
        new.replace(path)
    return path.read_text().strip()


def plain_environ(home: Path) -> dict[str, str]:
    """What servers get to see: nothing of ours that could change how they behave."""
    return {"HOME": str(home), "LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"}


def leashed(
    command: Sequence[str],
    death_signal: signal.Signals = signal.SIGKILL,
    identity: Identity | None = None,
) -> list[str]:
    """A command that the kernel ends when this process ends."""
    user = "-" if identity is None else f"{identity.uid}:{identity.gid}"
    capability = "-" if identity is None else str(identity.capability or "-")
    leash = [sys.executable, "-I", "-S", str(LEASH)]
    return [*leash, str(os.getpid()), str(int(death_signal)), user, capability, *command]
