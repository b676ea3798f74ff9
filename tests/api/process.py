"""`messenger api` as a real process on a free port."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from infra.embedded.process import free_port
from tests.infra.machines import SECRET_TEXT

# Nothing is judged by these: the machine may be busy with other things.
START_SECONDS = 90.0
STOP_SECONDS = 60.0
ANSWER_SECONDS = 60.0
POLL_SECONDS = 0.05


class ApiProcess(NamedTuple):
    process: Process
    url: str


@asynccontextmanager
async def running(
    database_url: str,
    nats_url: str,
    *,
    port: int = 0,
    code: Path | None = None,
    **settings: str,
) -> AsyncIterator[ApiProcess]:
    """Of the code in this directory, or of ours."""
    port = port or free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.cli", "api", "--port", str(port)),
        env=environ(database_url, nats_url, **settings),
        cwd=code,
        stderr=PIPE,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        await _until_live(process, url)
        yield ApiProcess(process, url)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.communicate(), STOP_SECONDS)


def environ(database_url: str, nats_url: str, **settings: str) -> dict[str, str]:
    return {
        **os.environ,
        "MESSENGER_ENV": "test",
        "MESSENGER_BCRYPT_ROUNDS": "4",
        "MESSENGER_SECRET": SECRET_TEXT,
        "MESSENGER_DATABASE_URL": database_url,
        "MESSENGER_NATS_URL": nats_url,
        "MESSENGER_S3_ENDPOINT": "http://127.0.0.1:9",
        "MESSENGER_S3_ACCESS_KEY": "none",
        "MESSENGER_S3_SECRET_KEY": "none",
        **{f"MESSENGER_{name.upper()}": value for name, value in settings.items()},
    }


def asking(url: str = "") -> httpx.AsyncClient:
    """A client with more patience than httpx has by itself."""
    return httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS)


async def _until_live(process: Process, url: str) -> None:
    async with asyncio.timeout(START_SECONDS), asking() as client:
        while process.returncode is None:
            try:
                await client.get(f"{url}/health/live")
            except httpx.TransportError:
                await asyncio.sleep(POLL_SECONDS)
            else:
                return
    _, said = await process.communicate()
    raise AssertionError(said.decode())
