"""Those who upload without rest: a process of its own, which gives way to everybody else, as they
would be on machines of their own.

Reads a `Plan` on stdin's first line, says on stdout that it is ready, uploads until stdin ends,
and answers what each upload took, in seconds, as a JSON list. Each image is for a message of its
own.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from uuid import uuid4

import httpx
import msgspec

from infra.images.worker import be_nice

TIMEOUT_SECONDS = 120.0
READY = b"ready\n"


class Plan(msgspec.Struct, frozen=True):
    """`people`: access tokens; one upload at a time each."""

    url: str
    people: list[str]
    chat_id: str
    image: bytes


async def upload(client: httpx.AsyncClient, plan: Plan) -> float:
    began = perf_counter()
    response = await client.post(
        "/v1/attachments",
        data={"chat_id": plan.chat_id, "message_id": str(uuid4())},
        files={"file": ("photo.jpg", plan.image)},
    )
    assert response.status_code == 201, response.text
    return perf_counter() - began


async def _upload_until(token: str, plan: Plan, stopped: asyncio.Event) -> list[float]:
    times = []
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(
        base_url=plan.url, timeout=TIMEOUT_SECONDS, headers=headers
    ) as client:
        while not stopped.is_set():
            times.append(await upload(client, plan))
    return times


async def _main() -> None:
    plan = msgspec.json.decode(await asyncio.to_thread(sys.stdin.buffer.readline), type=Plan)
    stopped = asyncio.Event()
    be_nice()
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    uploads = [asyncio.create_task(_upload_until(each, plan, stopped)) for each in plan.people]
    await asyncio.to_thread(sys.stdin.buffer.read)
    stopped.set()
    times = await asyncio.gather(*uploads)
    sys.stdout.write(msgspec.json.encode([each for some in times for each in some]).decode())


class Uploads:
    """What each took, once they have ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []


@asynccontextmanager
async def uploading(plan: Plan) -> AsyncIterator[Uploads]:
    """They upload for as long as the block runs; those under way are waited for."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.uploading"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    uploads = Uploads()
    try:
        process.stdin.write(msgspec.json.encode(plan) + b"\n")
        assert await asyncio.wait_for(process.stdout.readline(), TIMEOUT_SECONDS) == READY
        yield uploads
        process.stdin.close()
        output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_SECONDS)
        assert process.returncode == 0, "the uploaders failed; their errors are above"
        uploads.seconds = msgspec.json.decode(output, type=list[float])
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


if __name__ == "__main__":
    asyncio.run(_main())
