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
from api.writing import writing
from infra import pipelined
from infra.appender import Appender
from infra.bus import Bus
from infra.database import Pool
from infra.erasure import Erasure
from infra.executor import Executor
from infra.images.pool import Images
from infra.keyring import Keyring, Secret
from infra.login_limits import LoginLimits
from infra.logs import Logger
from infra.objects import Objects
from infra.passwords import Passwords
from infra.sessions import EndedSessions, Sessions
from infra.settings import Settings
from infra.spool import spooling
from infra.tokens import Tokens
from infra.tracing import Tracer
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
    logger, metrics = Logger(settings.log_level, process=name), Metrics()
    passwords = Passwords(rounds=settings.bcrypt_rounds)
    async with (
        writing(
            settings,
            name=name,
            passwords=passwords,
            registry=metrics.registry,
            pool_name=f"{name} write",
            pool_size=_pool_size(settings),
        ) as (secret, pool, bus, appender, keyring, executor, tracer),
        spooling() as spool,
        Objects(settings) as objects,
        Images(workers=IMAGE_WORKERS, metrics=metrics.images) as images,
        _reading(settings, name, pool, bus, objects) as read_models,
        _sessions(settings, pool, bus, secret) as (tokens, ended, sessions),
        Erasure(pool, executor, keyring, sessions, logger) as erasure,
    ):
        executor.under_way.listen(images.make_way)
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


def _pool_size(settings: Settings) -> int:
    """Of each of the two: one reads, one writes."""
    return max(2, settings.database_pool_size // 2)


@asynccontextmanager
async def _reading(
    settings: Settings, name: str, pool: Pool, bus: Bus, objects: Objects
) -> AsyncIterator[ReadModels]:
    url = settings.database_replica_url or settings.database_url
    seconds = settings.read_wait_seconds
    async with (
        pipelined.pool(url, name=f"{name} read", size=_pool_size(settings)) as read_pool,
        ReadModels(read_pool, pool, bus, objects, wait_seconds=seconds) as read_models,
    ):
        yield read_models


@asynccontextmanager
async def _sessions(
    settings: Settings, pool: Pool, bus: Bus, secret: Secret
) -> AsyncIterator[tuple[Tokens, EndedSessions, Sessions]]:
    url, tokens = settings.database_url, Tokens(secret)
    life_seconds = settings.access_token_seconds
    async with EndedSessions(url, pool, bus, access_token_seconds=life_seconds) as ended:
        seconds = settings.refresh_token_seconds
        yield tokens, ended, Sessions(pool, tokens, ended, refresh_token_seconds=seconds)
