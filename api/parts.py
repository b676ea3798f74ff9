"""What an API process is made of, opened together and closed in reverse.

Nothing here is made per request. NATS may be away at any time; without PostgreSQL a process
does not start, and answers 503 while it is gone.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from api.metrics import Metrics
from api.rate_limits import RateLimits
from api.read_models import ReadModels
from api.slots import Slots
from infra import database, pipelined
from infra.appender import Appender
from infra.bus import HEAD, Bus
from infra.database import Pool
from infra.erasure import Erasure
from infra.executor import Executor
from infra.images import Images
from infra.keyring import Keyring, Secret
from infra.login_limits import LoginLimits
from infra.logs import Logger
from infra.objects import Objects
from infra.passwords import Passwords
from infra.sessions import EndedSessions, Sessions
from infra.settings import Settings
from infra.spool import spooling
from infra.tokens import Tokens
from infra.tracing import Tracer, tracing
from infra.uploads import Uploads

MAX_UPLOADS_AT_ONCE = 32
MAX_UPLOADS_OF_A_USER = 16
# Half of the processors: the rest of the messenger goes on beside the images.
IMAGE_WORKERS = max(1, (os.cpu_count() or 1) // 2)


class Parts(NamedTuple):
    settings: Settings
    pool: Pool
    bus: Bus
    appender: Appender
    keyring: Keyring
    executor: Executor
    passwords: Passwords
    login_limits: LoginLimits
    rate_limits: RateLimits
    tokens: Tokens
    sessions: Sessions
    ended: EndedSessions
    erasure: Erasure
    objects: Objects
    images: Images
    uploads: Uploads
    upload_slots: Slots
    spool: Path
    read_models: ReadModels
    metrics: Metrics
    logger: Logger
    tracer: Tracer | None


@asynccontextmanager
async def opened(settings: Settings, *, name: str = "api") -> AsyncIterator[Parts]:
    """Raises Unavailable if the database does not answer."""
    url = settings.database_url
    secret = await _secret(settings)
    pool_size = max(2, settings.database_pool_size // 2)
    metrics = Metrics()
    async with (
        tracing(settings, process=name) as tracer,
        Bus.of(settings, name=name, metrics=metrics.bus) as bus,
        database.pool(url, name=f"{name} write", size=pool_size) as pool,
        _read_pool(settings, name, pool_size) as read_pool,
        _appender(settings, bus, metrics) as appender,
        spooling() as spool,
        Objects(settings) as objects,
        Images(workers=IMAGE_WORKERS, metrics=metrics.images) as images,
        EndedSessions(url, pool, bus, access_token_seconds=settings.access_token_seconds) as ended,
        ReadModels(
            read_pool, pool, bus, objects, wait_seconds=settings.read_wait_seconds
        ) as read_models,
    ):
        passwords = Passwords(rounds=settings.bcrypt_rounds)
        tokens = Tokens(secret)
        logger = Logger(settings.log_level, process=name)
        keyring = Keyring(secret, pool)
        executor = Executor(
            pool=pool,
            appender=appender,
            keyring=keyring,
            secret=secret,
            passwords=passwords,
            tracer=tracer,
        )
        sessions = Sessions(
            pool, tokens, ended, refresh_token_seconds=settings.refresh_token_seconds
        )
        async with Erasure(pool, executor, keyring, sessions, logger) as erasure:
            yield Parts(
                settings=settings,
                pool=pool,
                bus=bus,
                appender=appender,
                keyring=keyring,
                executor=executor,
                passwords=passwords,
                login_limits=LoginLimits(pool, secret, settings),
                rate_limits=RateLimits(settings, metrics),
                tokens=tokens,
                sessions=sessions,
                ended=ended,
                erasure=erasure,
                objects=objects,
                images=images,
                uploads=Uploads(pool, executor, images, objects),
                upload_slots=Slots(total=MAX_UPLOADS_AT_ONCE, each=MAX_UPLOADS_OF_A_USER),
                spool=spool,
                read_models=read_models,
                metrics=metrics,
                logger=logger,
                tracer=tracer,
            )


def _appender(settings: Settings, bus: Bus, metrics: Metrics) -> Appender:
    return Appender(
        settings.database_url,
        queue_limit=settings.append_queue_limit,
        on_commit=lambda head: bus.hint(HEAD, b"%d" % head),
        metrics=metrics.appends,
    )


def _read_pool(settings: Settings, name: str, size: int) -> pipelined.Pool:
    url = settings.database_replica_url or settings.database_url
    return pipelined.pool(url, name=f"{name} read", size=size)


async def _secret(settings: Settings) -> Secret:
    connection = await database.connect(settings.database_url, name="secret")
    async with connection:
        return await Secret.load(settings.secret, connection)
