"""Servers that are given by URL: whether they are there is said at once, and by name."""

import asyncio
import os
from urllib.parse import urlsplit

from infra.embedded.process import StartError, first_bytes
from infra.settings import PREFIX, Settings
from infra.urls import without_password

NATS_PORT = 4222
CONNECT_TIMEOUT_SECONDS = 5


async def reach_given(given: Settings) -> None:
    """Says at once, and by name, which of the given servers is not there."""
    await asyncio.gather(_reach_database(given), _reach_nats(given), _reach_s3(given))


async def _reach_database(given: Settings) -> None:
    if not given.database_url:
        return
    import psycopg

    from infra.database import first_line

    try:
        connection = await psycopg.AsyncConnection.connect(
            given.database_url, connect_timeout=CONNECT_TIMEOUT_SECONDS
        )
    except psycopg.Error as error:
        raise _unreachable("database_url", given.database_url, first_line(error)) from None
    await connection.close()


async def _reach_nats(given: Settings) -> None:
    """One of a cluster's servers is enough."""
    urls = [urlsplit(url) for url in given.nats_url.split(",") if url]
    for url in urls:
        if (await first_bytes(url.hostname or "", url.port or NATS_PORT)).startswith(b"INFO "):
            return
    if urls:
        raise _unreachable("nats_url", given.nats_url, "no NATS server answers")


async def _reach_s3(given: Settings) -> None:
    if not given.s3_endpoint:
        return
    url = urlsplit(given.s3_endpoint)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            _, writer = await asyncio.open_connection(url.hostname, port)
    except (OSError, TimeoutError) as error:
        why = os.strerror(error.errno) if error.errno else "no answer"
        raise _unreachable("s3_endpoint", given.s3_endpoint, why) from None
    writer.close()


def _unreachable(name: str, url: str, why: str) -> StartError:
    shown = without_password(url)
    return StartError(f"{PREFIX}{name.upper()}={shown} can not be reached: {why}")
