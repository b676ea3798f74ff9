"""Answers that are as of one position, however far apart the read models are.

They move one by one, so a snapshot may hold some of them further than others. It is as of the
lowest position all the same if nothing after that one matters to the answer; where something
does (the query raises Torn), a new snapshot is taken a moment later. So it is for what has to be there
and is not yet, as is the caller's own account.
"""

import asyncio
import time
from typing import LiteralString

from api.http import Reply
from api.operations import Call
from api.problems import ReadModelBehind
from api.queries.query import Query, answer

PAUSE_SECONDS = 0.01
SOON_SECONDS = 1.0
# Further apart than this, looking at what is between would cost more than waiting.
MAX_APART = 1_000


# The begin of statements that look at what is between the positions of the projections used.
PLACE: LiteralString = """
    WITH place AS MATERIALIZED (
        SELECT
            min(coalesce(c.position, 0)) AS low,
            max(coalesce(c.position, 0)) AS high
        FROM unnest(%(used)s::text[]) AS used (projection)
        LEFT JOIN projection_checkpoints AS c ON c.projection = used.projection
    )
"""


class Torn(ReadModelBehind):
    """The read model is behind"""


async def answer_whole(query: Query, call: Call) -> Reply:
    """Until a snapshot is whole, as long as any read may wait."""
    whole = await _whole(query, call, call.parts.settings.read_wait_seconds)
    if isinstance(whole, Torn):
        raise ReadModelBehind(whole.detail)
    return whole


async def answer_whole_or(torn: Query, query: Query, call: Call) -> Reply:
    """Whole if that can be had soon; else as it is: a projection that stands still must not take
    the others' answers with it."""
    whole = await _whole(query, call, SOON_SECONDS)
    return await answer(torn, call) if isinstance(whole, Torn) else whole


async def _whole(query: Query, call: Call, seconds: float) -> Reply | Torn:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await answer(query, call)
        except Torn as torn:
            if time.monotonic() > deadline:
                return torn
        await asyncio.sleep(PAUSE_SECONDS)
