"""Reading the log from PostgreSQL, its truth. Nothing here writes; the appender does.

Range reads check that they got every position they asked for: the log has no gaps, so a
short answer is an error and never skipped over.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag

from domain.event import Event, Place, Recorded
from domain.ids import ChatId, StreamId, UserId
from infra import codec
from infra.database import Connection
from infra.errors import LogError
from infra.keyring import Keyring

OPENED_AT_ONCE = 500

HEAD = """
    SELECT position, epoch
    FROM public.log_head
"""

# Types that the reader has no use for come without their data.
RANGE = """
    SELECT
        position,
        recorded_at,
        type,
        schema_version,
        CASE WHEN type = ANY (%(types)s) THEN data::text END
    FROM public.event_log
    WHERE position > %(after)s AND position <= %(up_to)s
    ORDER BY position
"""

TAILS = """
    SELECT e.stream, e.stream_version, e.position, e.recorded_at, e.type, e.schema_version,
        e.data::text
    FROM unnest(%s::text[], %s::int[]) AS known (stream, version)
    JOIN public.event_log AS e ON e.stream = known.stream AND e.stream_version > known.version
    ORDER BY e.position
"""

LAST_EVENTS = """
    SELECT e.stream, e.stream_version, e.position, e.recorded_at, e.type, e.schema_version,
        e.data::text
    FROM unnest(%s::text[], %s::int[]) AS known (stream, version)
    CROSS JOIN LATERAL (
        SELECT *
        FROM public.event_log AS latest
        WHERE latest.stream = known.stream AND latest.stream_version > known.version
        ORDER BY latest.stream_version DESC
        LIMIT 1
    ) AS e
"""

NEWEST_MESSAGE = """
    SELECT position
    FROM event_log
    WHERE type = 'message_sent'
        AND data ->> 'chat_id' = %s
        AND data ->> 'sender_id' <> %s
    ORDER BY position DESC
    LIMIT 1
"""

HOLDER = """
    SELECT holder
    FROM unique_values
    WHERE scope = %s AND value = %s
"""

KNOWN_KEY = """
    SELECT body_hash = decode(%s, 'hex'), position, answer::text, encode(body_hash, 'hex'), secret
    FROM command_keys
    WHERE scope = %s AND key = %s
"""

REMEMBER_KEY = """
    INSERT INTO command_keys (scope, key, body_hash, position, answer)
    VALUES (%s, %s, decode(%s, 'hex'), %s, %s::json)
    ON CONFLICT DO NOTHING
"""


class Head(NamedTuple):
    position: int
    epoch: int


class StreamEvent(NamedTuple):
    stream: StreamId
    version: int
    place: Place
    event: Event


async def head(connection: Connection) -> Head:
    row: Any = await (await connection.execute(HEAD)).fetchone()
    return Head(*row)


async def read(
    connection: Connection,
    *,
    after: int,
    up_to: int,
    types: Collection[str],
    without: Collection[int] = (),
    decode: Callable[[str, int, str], Event | None] = codec.decode,
) -> list[Recorded]:
    """Every event in (after, up_to], fields still sealed. Of other types, and at the positions
    in `without`, `event` is None and nothing is decoded.

    Raises LogError if a position is missing, or what `decode` raises.
    """
    if after == up_to:
        return []
    cursor = await connection.execute(RANGE, {"types": list(types), "after": after, "up_to": up_to})
    rows = await cursor.fetchall()
    if len(rows) != up_to - after:
        raise LogError(f"the log has {len(rows)} events in ({after}, {up_to}]")
    return [
        Recorded(
            position,
            at,
            None if data is None or position in without else decode(type_name, version, data),
        )
        for position, at, type_name, version, data in rows
    ]


async def open_events(events: list[Event], keyring: Keyring) -> None:
    """Opens sealed fields in place; a destroyed key leaves None. Raises LogError."""
    # Some at a time: keys may be used only shortly after they were loaded.
    for first in range(0, len(events), OPENED_AT_ONCE):
        some = events[first : first + OPENED_AT_ONCE]
        await keyring.load(codec.key_ids(some))
        for event in some:
            try:
                codec.open_sealed(event, keyring)
            except InvalidTag:
                raise LogError(f"what is sealed in a {event.type} was tampered with") from None


async def tails(
    connection: Connection, known: Mapping[StreamId, int], *, last_only: bool
) -> list[StreamEvent]:
    """What came after the known versions, in log order, sealed; or the last event of each."""
    statement = LAST_EVENTS if last_only else TAILS
    cursor = await connection.execute(statement, (list(known), list(known.values())))
    return [
        StreamEvent(stream, version, Place(position, at), codec.decode(type_name, schema, data))
        for stream, version, position, at, type_name, schema, data in await cursor.fetchall()
    ]


async def newest_message(connection: Connection, chat_id: ChatId, *, besides: UserId) -> int:
    """Position of the chat's newest message by another sender; 0 if there is none."""
    row = await (await connection.execute(NEWEST_MESSAGE, (chat_id, besides))).fetchone()
    return row[0] if row else 0


async def holder(connection: Connection, scope: str, value: str) -> StreamId | None:
    """The stream that holds a unique value."""
    row = await (await connection.execute(HOLDER, (scope, value))).fetchone()
    return StreamId(row[0]) if row else None


class KnownKey(NamedTuple):
    """`secret` names the one that `body_hash` was made with, None being this instance's."""

    same_body: bool
    position: int
    answer: bytes
    body_hash: str
    secret: str | None


async def known_key(
    connection: Connection, scope: str, key: str, body_hash: str
) -> KnownKey | None:
    row = await (await connection.execute(KNOWN_KEY, (body_hash, scope, key))).fetchone()
    return KnownKey(row[0], row[1], row[2].encode(), row[3], row[4]) if row else None


async def remember_key(
    connection: Connection, scope: str, key: str, body_hash: str, position: int, answer: str
) -> bool:
    """Of a command that has nothing to append. False if the key is known already."""
    cursor = await connection.execute(REMEMBER_KEY, (scope, key, body_hash, position, answer))
    return cursor.rowcount == 1


async def position_at(connection: Connection, time: datetime) -> int:
    """The last position recorded at or before a time; 0 if there is none."""
    row: Any = await (
        await connection.execute(
            "SELECT coalesce(max(position), 0) FROM public.event_log WHERE recorded_at <= %s",
            (time,),
        )
    ).fetchone()
    return int(row[0])
