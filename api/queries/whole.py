"""Answers that are as of one position, however far apart the read models are.

They move one by one, so a snapshot may hold some of them further than others. It is as of the
lowest position all the same if nothing after that one matters to the answer; where something
does (the query raises Torn), a new snapshot is taken a moment later.
"""

import asyncio
import time

from api.http import Reply
from api.operations import Call
from api.problems import ReadModelBehind
from api.queries.query import Query, answer

PAUSE_SECONDS = 0.01
# Further apart than this, looking at what is between would cost more than waiting.
MAX_APART = 1_000


class Torn(ReadModelBehind):
    """The read model is behind"""


async def answer_whole(query: Query, call: Call) -> Reply:
    """Until a snapshot is whole, as long as any read may wait."""
    deadline = time.monotonic() + call.parts.settings.read_wait_seconds
    while True:
        try:
            return await answer(query, call)
        except Torn:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(PAUSE_SECONDS)
