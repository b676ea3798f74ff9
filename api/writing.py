"""What it takes to command something, opened together: for an API process, maintenance, an import.

NATS may be away; without PostgreSQL nothing opens.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from infra import database
from infra.appender import Appender
from infra.bus import HEAD, Bus
from infra.database import Pool
from infra.executor import Executor
from infra.keyring import Keyring, Secret
from infra.metrics import AppendMetrics, BusMetrics, Registry
from infra.passwords import Passwords
from infra.settings import Settings
from infra.tracing import Tracer, tracing

POOL_SIZE = 4


class Writing(NamedTuple):
    secret: Secret
    pool: Pool
    bus: Bus
    appender: Appender
    keyring: Keyring
    executor: Executor
    tracer: Tracer | None


@asynccontextmanager
async def writing(
    settings: Settings,
    *,
    name: str,
    passwords: Passwords,
    registry: Registry | None = None,
    pool_name: str | None = None,
    pool_size: int = POOL_SIZE,
) -> AsyncIterator[Writing]:
    """`name` is the process's, and the pool's if that has none. Raises Unavailable if the database
    does not answer."""
    url = settings.database_url
    async with await database.connect(url, name=name) as connection:
        secret = await Secret.load(settings.secret, connection)
    async with (
        tracing(settings, process=name) as tracer,
        Bus.of(settings, name=name, metrics=BusMetrics(registry)) as bus,
        database.pool(url, name=pool_name or name, size=pool_size) as pool,
        Appender(
            url,
            queue_limit=settings.append_queue_limit,
            on_commit=lambda head: bus.hint(HEAD, b"%d" % head),
            metrics=AppendMetrics(registry),
        ) as appender,
    ):
        keyring = Keyring(secret, pool)
        executor = Executor(
            pool=pool,
            appender=appender,
            keyring=keyring,
            secret=secret,
            passwords=passwords,
            tracer=tracer,
        )
        yield Writing(secret, pool, bus, appender, keyring, executor, tracer)
