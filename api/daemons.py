"""The daemons behind the API: relay, projectors and maintenance, each until a signal stops it."""

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, NamedTuple

from api.stream.presence import Leases
from infra import database, garbage, logs, metrics, scraping
from infra.appender import Appender
from infra.bus import HEAD, Bus
from infra.database import Pool
from infra.ending import end
from infra.executor import Executor
from infra.history import Witness
from infra.housekeeping import Housekeeping
from infra.keyring import Keyring, Secret
from infra.logs import Logger
from infra.metrics import (
    AppendMetrics,
    BusMetrics,
    ProjectorMetrics,
    Registry,
    RelayMetrics,
    UpkeepMetrics,
)
from infra.objects import Objects
from infra.passwords import Passwords
from infra.priority import CATCHING_UP, give_way
from infra.projector import Projector
from infra.relay import Relay
from infra.removals import Removals
from infra.settings import Settings
from infra.tracing import tracing
from projections.projection import Projection

KEYRING_POOL_SIZE = 2
WRITING_POOL_SIZE = 4


async def until_signal(*work: Coroutine[Any, Any, None]) -> None:
    """Runs the coroutines until SIGINT or SIGTERM, or until one raises."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stopped.set)
    garbage.settle()
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    waiting = asyncio.create_task(stopped.wait())
    try:
        done, _ = await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            await task
    finally:
        await end(waiting, *tasks)


def scraped(settings: Settings, registry: Registry) -> AbstractAsyncContextManager[None]:
    """Serves what the registry has, where the settings say so."""

    async def page() -> bytes:
        return metrics.text(registry)

    return scraping.served(settings.metrics_address, page)


async def relay(settings: Settings) -> None:
    logger = Logger(settings.log_level, process="relay")
    logs.forward(logger)
    registry = metrics.registry()
    counted = RelayMetrics(registry)
    async with (
        scraped(settings, registry),
        tracing(settings, process="relay") as tracer,
        Bus.of(settings, name="relay", metrics=BusMetrics(registry)) as bus,
    ):
        await until_signal(Relay(settings.database_url, bus, logger, counted, tracer).run())


async def project(settings: Settings, projections: Sequence[Projection]) -> None:
    give_way(CATCHING_UP)
    logger = Logger(settings.log_level, process="projector")
    logs.forward(logger)
    registry = metrics.registry()
    counted = ProjectorMetrics(registry)
    async with (
        scraped(settings, registry),
        tracing(settings, process="projector") as tracer,
        keyring(settings) as keys,
        Bus.of(settings, name="projector", metrics=BusMetrics(registry)) as bus,
    ):
        projectors = [
            Projector(
                projection,
                database_url=settings.database_url,
                keyring=keys,
                bus=bus,
                logger=logger,
                metrics=counted,
                tracer=tracer,
            )
            for projection in projections
        ]
        await until_signal(keys.watch(), *(projector.run() for projector in projectors))


async def maintain(settings: Settings, *, once: bool) -> None:
    """Raises Unavailable where it shall be done once and can't be, or Stopped."""
    logger = Logger(settings.log_level, process="maintain")
    logs.forward(logger)
    name = "maintain" if once else database.process_name("maintain")
    passwords = Passwords(rounds=settings.bcrypt_rounds)
    registry = metrics.registry()
    counted = UpkeepMetrics(registry)
    async with (
        nullcontext() if once else scraped(settings, registry),
        writing(settings, name=name, passwords=passwords, registry=registry) as parts,
        Objects(settings) as objects,
    ):
        removals = Removals(
            parts.pool,
            parts.executor,
            parts.keyring,
            objects,
            logger,
            unsent_seconds=settings.attachment_unsent_seconds,
            metrics=counted,
        )
        leases = Leases(parts.pool, parts.executor)
        housekeeping = Housekeeping(
            parts.pool,
            logger,
            archive_tablespace=settings.archive_tablespace,
            archive_months=settings.archive_months,
            metrics=counted,
        )
        if once:
            try:
                await housekeeping.once()
            finally:
                await removals.once()
                await leases.reap()
        else:
            # What it remembers of the log has to be of this one.
            witness = Witness(parts.pool, parts.bus)
            await until_signal(
                parts.keyring.watch(),
                removals.run(),
                leases.reap_forever(logger),
                housekeeping.run(),
                witness.watch(),
            )


class Writing(NamedTuple):
    """What it takes to command something."""

    pool: Pool
    executor: Executor
    keyring: Keyring
    bus: Bus


@asynccontextmanager
async def writing(
    settings: Settings, *, name: str, passwords: Passwords, registry: Registry | None = None
) -> AsyncIterator[Writing]:
    """Raises Unavailable if the database does not answer."""
    url = settings.database_url
    async with await database.connect(url, name=name) as connection:
        secret = await Secret.load(settings.secret, connection)
    async with (
        tracing(settings, process=name) as tracer,
        Bus.of(settings, name=name, metrics=BusMetrics(registry)) as bus,
        database.pool(url, name=name, size=WRITING_POOL_SIZE) as pool,
        Appender(
            url,
            queue_limit=settings.append_queue_limit,
            on_commit=lambda head: bus.hint(HEAD, b"%d" % head),
            metrics=AppendMetrics(registry),
        ) as appender,
    ):
        keys = Keyring(secret, pool)
        executor = Executor(
            pool=pool,
            appender=appender,
            keyring=keys,
            secret=secret,
            passwords=passwords,
            tracer=tracer,
        )
        yield Writing(pool, executor, keys, bus)


@asynccontextmanager
async def keyring(settings: Settings) -> AsyncIterator[Keyring]:
    """The keys for reading the log. Raises Unavailable if the database does not answer."""
    async with await database.connect(settings.database_url, name="keys") as connection:
        secret = await Secret.load(settings.secret, connection)
    pool = database.pool(
        settings.database_url, name=database.process_name("keys"), size=KEYRING_POOL_SIZE
    )
    async with pool:
        yield Keyring(secret, pool)
