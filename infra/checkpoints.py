"""The live checkpoint of a projection, where somebody else than its projector moves it.

Its row is locked first: that holds the projector, whose next batch then finds it moved. With
the position it has the version of the projection's code that the live tables are of.
"""

from typing import NamedTuple

from infra.database import Connection

BEGIN = """
    INSERT INTO public.projection_checkpoints (projection, position, updated_at, version)
    VALUES (%s, 0, now(), %s)
    ON CONFLICT DO NOTHING
"""

LIVE = """
    SELECT position, version
    FROM public.projection_checkpoints
    WHERE projection = %s
"""

LOCK = """
    SELECT position, version
    FROM public.projection_checkpoints
    WHERE projection = %s
    FOR UPDATE
"""

MOVE = """
    UPDATE public.projection_checkpoints
    SET position = %(position)s,
        version = %(version)s,
        updated_at = now()
    WHERE projection = %(projection)s
"""

FORGET_FAILURE = """
    DELETE FROM public.projection_failures
    WHERE projection = %s
"""


class Checkpoint(NamedTuple):
    position: int
    version: int


async def begin(connection: Connection, projection: str, version: int) -> None:
    """Where there is none yet."""
    await connection.execute(BEGIN, (projection, version))


async def live(connection: Connection, projection: str) -> Checkpoint | None:
    row = await (await connection.execute(LIVE, (projection,))).fetchone()
    return None if row is None else Checkpoint(*row)


async def lock(connection: Connection, projection: str) -> Checkpoint | None:
    """To the end of the caller's transaction."""
    row = await (await connection.execute(LOCK, (projection,))).fetchone()
    return None if row is None else Checkpoint(*row)


async def move(connection: Connection, projection: str, to: Checkpoint) -> None:
    """What it stood still at is not in its way any more."""
    await connection.execute(MOVE, {"projection": projection, **to._asdict()})
    await connection.execute(FORGET_FAILURE, (projection,))
