"""The servers of a data directory on which no `messenger up` runs, started for a tool and stopped
after it: a log that went back in time while all was stopped lets no `up` come up again."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from api.up.directory import absolute, locked
from infra.embedded.nats import Nats
from infra.embedded.postgres import Postgres
from infra.embedded.process import StartError, while_running
from infra.errors import Unavailable
from infra.settings import Settings


def has_servers(settings: Settings) -> bool:
    """Whether they are there, and not given or running."""
    return not _is_complete(settings) and (absolute(settings.data_dir) / "postgres").is_dir()


def _is_complete(settings: Settings) -> bool:
    return bool(settings.database_url and settings.nats_url)


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[Settings]:
    """The settings with their addresses: those that have them stay as they are. Raises Unavailable,
    also while an `up` starts or stops."""
    if _is_complete(settings):
        yield settings
        return
    directory = absolute(settings.data_dir)
    try:
        async with AsyncExitStack() as stack:
            stack.enter_context(locked(directory))
            addresses: dict[str, str] = {}
            if not settings.database_url:
                postgres = await stack.enter_async_context(while_running(Postgres(directory)))
                addresses["database_url"] = postgres.url
            if not settings.nats_url:
                nats = await stack.enter_async_context(while_running(Nats(directory)))
                addresses["nats_url"] = nats.url
            yield msgspec.structs.replace(settings, **addresses)
    except StartError as error:
        raise Unavailable(str(error)) from error
