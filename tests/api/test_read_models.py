"""The read models' connections stay good, whatever becomes of those who read."""

import asyncio
import random
from typing import Any

from api.read_models import Snapshot
from tests.api.served import Api, good

USED = ("users", "chats", "messages")
READERS = 300
MAX_TURNS = 40
READS = 60


async def test_reads_that_are_cancelled_at_any_moment_leave_no_connection_behind_that_fails(
    whole_api: Api,
) -> None:
    """As those of a client of the stream that goes while it starts."""
    ann = await whole_api.person("ann")
    read_models, chance = whole_api.parts.read_models, random.Random(1)

    async def look(snapshot: Snapshot) -> list[dict[str, Any]]:
        return await snapshot.rows("SELECT id FROM users", {})

    async def cancelled() -> None:
        reading = asyncio.create_task(read_models.read(USED, 0, look))
        for _ in range(chance.randrange(MAX_TURNS)):
            await asyncio.sleep(0)  # one turn of the loop, and so a place where it waits
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    for _ in range(READERS):
        await cancelled()
    for _ in range(READS):
        changed = await ann.do("update-profile", display_name=f"Ann {chance.random()}")
        # Waiting for its position uses the connections in another way, between two reads.
        good(await ann.look("/v1/users/me", changed["position"]))
