"""The daemons that copy the log: the relay and the projectors, each until a signal stops it.

What only others need is not loaded here: a projector starts in half a second of processor time.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

from infra import database, garbage, logs, metrics, scraping
from infra.bus import Bus
from infra.ending import end
from infra.keyring import Keyring, Secret
from infra.logs import Logger
from infra.metrics import (
    BusMetrics,
    ProjectorMetrics,
    Registry,
    RelayMetrics,
)
from infra.priority import CATCHING_UP, give_way
from infra.projector import Projector
from infra.relay import Relay
from infra.settings import Settings
from infra.tracing import Tracer, tracing
from projections.projection import Projection

KEYRING_POOL_SIZE = 2


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


class Copying(NamedTuple):
    """What a daemon has that copies the log to somewhere."""

    logger: Logger
    registry: Registry
    tracer: Tracer | None
    bus: Bus


@asynccontextmanager
async def copying(settings: Settings, *, process: str) -> AsyncIterator[Copying]:
    logger, registry = telling(settings, process)
    async with (
        scraped(settings, registry),
        tracing(settings, process=process) as tracer,
        Bus.of(settings, name=process, metrics=BusMetrics(registry)) as bus,
    ):
        yield Copying(logger, registry, tracer, bus)


def telling(settings: Settings, process: str) -> tuple[Logger, Registry]:
    """What is logged by others comes there too."""
    logger = Logger(settings.log_level, process=process)
    logs.forward(logger)
    return logger, metrics.registry()


async def relay(settings: Settings) -> None:
    async with copying(settings, process="relay") as (logger, registry, tracer, bus):
        counted = RelayMetrics(registry)
        await until_signal(Relay(settings.database_url, bus, logger, counted, tracer).run())


async def project(settings: Settings, projections: Sequence[Projection]) -> None:
    give_way(CATCHING_UP)
    async with (
        copying(settings, process="projector") as (logger, registry, tracer, bus),
        keyring(settings) as keys,
    ):
        counted = ProjectorMetrics(registry)
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
