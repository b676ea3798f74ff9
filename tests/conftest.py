"""Real servers for every test: one PostgreSQL, one NATS and one S3 a worker, a database a test.

`database_url` is a fresh copy of a template that was migrated once; `empty_database_url` has
no tables yet. `nats_url` is the run's server without any stream. All work in plain and in
async tests. Workers share nothing; the tests of a file go to one of them. Hypothesis runs with
the profile `dev`, or `ci` (the same examples each time) where CI is set, or the one that
HYPOTHESIS_PROFILE names.
"""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit
from uuid import uuid4

import nats
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from xdist.scheduler.loadscope import LoadScopeScheduling

from infra import migrate
from infra.embedded import nats as embedded_nats
from infra.embedded import postgres as embedded_postgres
from infra.embedded import s3 as embedded_s3
from tests.databases import until_free

# A test that uses a database makes it once for all its examples: they must not meet in it.
SHARED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("dev", SHARED, max_examples=30)
settings.register_profile("ci", SHARED, max_examples=50, derandomize=True, print_blob=True)
settings.register_profile("nightly", SHARED, max_examples=3_000)
settings.register_profile("fuzz", SHARED, max_examples=int(os.environ.get("FUZZ_EXAMPLES", "2000")))
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)

# Servers keep their files in memory where there is room. A disk may take half a second of system
# time for each database: before it reuses an inode, ext4 looks whether it was freed just now, and
# that is what a database dropped after each test leaves behind by the hundred.
MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 4 * 1024**3

# Nothing is judged by it: the machine may be busy with other things.
NATS_SECONDS = 60

# These share what is made once for all of them, and go to one worker.
TOGETHER = ("tests/acceptance/",)
# Begun first, so that no worker is left with one of them at the end. The longest leads.
LONG = (
    "tests/machine/test_machine.py",
    "tests/api/test_schemathesis.py",
    "tests/faults/test_up.py",
    "tests/acceptance/",
    "tests/faults/test_load.py",
    "tests/faults/test_suite.py",
    "tests/api/test_erasure.py",
    "tests/irc/test_importer.py",
    "tests/infra/test_replay.py",
    "tests/infra/test_projector.py",
    "tests/test_benchmarks_run.py",
    "tests/projections/test_histories.py",
)

CREATE_DATABASE: LiteralString = "CREATE DATABASE {name} TEMPLATE {template}"
DROP_DATABASE: LiteralString = "DROP DATABASE {name} WITH (FORCE)"


class Shares(LoadScopeScheduling):
    """How workers share the tests: file by file."""

    def _split_scope(self, nodeid: str) -> str:
        return share_of(nodeid)


def share_of(nodeid: str) -> str:
    return next(
        (one for one in TOGETHER if nodeid.startswith(one)),
        nodeid.partition("::")[0],
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Shares:
    return Shares(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of the others is chance's, and stays."""
    places = {share: place for place, share in enumerate(LONG)}
    items.sort(key=lambda item: places.get(share_of(item.nodeid), len(LONG)))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """Removed with all its data at the end of the run."""
    with tempfile.TemporaryDirectory(prefix="messenger-test-", dir=_memory()) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
async def postgres(
    anyio_backend: str, server_directory: Path
) -> AsyncIterator[embedded_postgres.Postgres]:
    async with embedded_postgres.running(server_directory, is_durable=False) as server:
        yield server


@pytest.fixture(scope="session")
async def nats_server(
    anyio_backend: str, server_directory: Path
) -> AsyncIterator[embedded_nats.Nats]:
    async with embedded_nats.running(server_directory) as server:
        yield server


@pytest.fixture(scope="session")
async def s3_server(anyio_backend: str, server_directory: Path) -> AsyncIterator[embedded_s3.S3]:
    async with embedded_s3.running(server_directory) as server:
        yield server


@pytest.fixture(scope="session")
def template_database(postgres: embedded_postgres.Postgres) -> Iterator[str]:
    with _database(postgres.url, template="template0") as url:
        migrate.upgrade(url)
        yield _name(url)


@pytest.fixture
def database_url(postgres: embedded_postgres.Postgres, template_database: str) -> Iterator[str]:
    with _database(postgres.url, template=template_database) as url:
        yield url


@pytest.fixture(scope="session")
def fresh_database(
    postgres: embedded_postgres.Postgres, template_database: str
) -> Callable[[], AbstractContextManager[str]]:
    """A database each time it is entered, for tests whose examples need one each."""
    return partial(_database, postgres.url, template=template_database)


@pytest.fixture(scope="session")
def database_of() -> Callable[..., AbstractContextManager[str]]:
    """As `fresh_database`, for servers that a test has of its own."""
    return _database


@pytest.fixture
def empty_database_url(postgres: embedded_postgres.Postgres) -> Iterator[str]:
    with _database(postgres.url, template="template0") as url:
        yield url


@pytest.fixture
async def nats_url(anyio_backend: str, nats_server: embedded_nats.Nats) -> str:
    await _delete_streams(nats_server.url)
    return nats_server.url


@pytest.fixture(scope="module")
async def nats_url_of_module(anyio_backend: str, nats_server: embedded_nats.Nats) -> str:
    """For what is made once for a file: without streams, until a test asks for `nats_url`."""
    await _delete_streams(nats_server.url)
    return nats_server.url


def _memory() -> Path | None:
    """None where there is too little of it: then it is the disk."""
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN
    return MEMORY if has_room else None


@contextmanager
def _database(server_url: str, *, template: str) -> Iterator[str]:
    """A database of its own, dropped afterwards whoever is still connected."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
        until_free(connection, sql.SQL(CREATE_DATABASE).format(**names))
        yield urlsplit(server_url)._replace(path=f"/{name}").geturl()
        until_free(connection, sql.SQL(DROP_DATABASE).format(**names))


def _name(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


async def _delete_streams(url: str) -> None:
    client = await nats.connect(url, connect_timeout=NATS_SECONDS)
    streams = client.jetstream(timeout=NATS_SECONDS)
    for stream in await streams.streams_info():
        await streams.delete_stream(stream.config.name or "")
    await client.close()
