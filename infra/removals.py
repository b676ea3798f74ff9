"""Objects leave the store after what they belong to: the work of `messenger maintain`.

What events end (a message deleted, an account erased, an avatar replaced) is removed in the order
of the log; the position moves when the store has confirmed, so that nothing is forgotten while it
is away. Uploads that were never sent are ended by an event of their own; those that broke
half-way, and are in no event, by the note that was made when they began. All of it may be done
twice, and by two processes at once.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, LiteralString, NamedTuple

import psycopg

from commands.remove_attachment import RemoveAttachment
from domain.attachment import SIZES, AttachmentRemoved, AttachmentUploaded
from domain.avatar import Owner, avatar_key, avatar_prefix
from domain.chat import GroupDeleted, GroupUpdated
from domain.event import Event
from domain.ids import AttachmentId, ChatId, StreamId, UserId, category
from domain.message import MessageDeleted
from domain.user import AccountDeleted, ProfileUpdated
from infra import codec, event_log
from infra.database import DOWN, Pool, first_line
from infra.errors import LogError, MessengerError
from infra.executor import Executor, Request
from infra.keyring import Keyring
from infra.logs import Logger
from infra.metrics import UpkeepMetrics
from infra.objects import Objects

POLL_SECONDS = 0.5
BACKOFF_SECONDS_MAX = 10.0
SWEEP_SECONDS = 30.0
POSITIONS_AT_ONCE = 10_000
UPLOADS_AT_ONCE = 200
OBJECTS_AT_ONCE = 1_000
# Longer than any upload can take: what is unfinished then, nobody finishes.
UNFINISHED_SECONDS = 3_600.0

REMOVED = "objects"
SENT_IN_TIME = "unsent attachments"

POSITION = """
    SELECT position
    FROM upkeep_positions
    WHERE work = %s
"""

MOVE = """
    INSERT INTO upkeep_positions AS u (work, position, updated_at)
    VALUES (%s, %s, clock_timestamp())
    ON CONFLICT (work) DO UPDATE
    SET position = greatest(u.position, excluded.position),
        updated_at = excluded.updated_at
"""

ENDINGS = """
    SELECT position, type, schema_version, data::text, stream, stream_version
    FROM event_log
    WHERE position > %(after)s
        AND position <= %(up_to)s
        AND type = ANY (%(types)s)
    ORDER BY position
"""

UPLOADS_OF_MESSAGES = """
    SELECT position, type, schema_version, data::text
    FROM event_log
    WHERE type = 'attachment_uploaded' AND data ->> 'message_id' = ANY (%s)
"""

UPLOADS_OF_SENDERS = """
    SELECT position, type, schema_version, data::text
    FROM event_log
    WHERE type = 'attachment_uploaded' AND data ->> 'sender_id' = ANY (%s)
"""

UPLOADS_OF_STREAMS = """
    SELECT position, type, schema_version, data::text
    FROM event_log
    WHERE type = 'attachment_uploaded' AND stream = ANY (%s)
"""

PREDECESSOR = """
    SELECT position, type, schema_version, data::text
    FROM event_log
    WHERE stream = %(stream)s
        AND stream_version < %(version)s
        AND type = %(type)s
    ORDER BY stream_version DESC
    LIMIT 1
"""

OLD_UPLOADS = """
    SELECT position, data ->> 'attachment_id'
    FROM event_log
    WHERE type = 'attachment_uploaded'
        AND position > %(after)s
        AND recorded_at < now() - make_interval(secs => %(seconds)s)
    ORDER BY position
    LIMIT %(limit)s
"""

UNFINISHED = """
    SELECT id::text, stream, keys
    FROM unfinished_uploads
    WHERE begun_at < now() - make_interval(secs => %(seconds)s)
    ORDER BY begun_at
    LIMIT %(limit)s
"""

UNFINISHED_OF = """
    SELECT stream, keys
    FROM unfinished_uploads
    WHERE uploader = %s
"""

FINISH = """
    DELETE FROM unfinished_uploads
    WHERE id = %s
"""

SKIPPED = """
    SELECT DISTINCT position
    FROM skipped_events
    WHERE position = ANY (%s)
"""

# What ends objects.
HANDLED: tuple[type[Event], ...] = (
    MessageDeleted,
    AttachmentRemoved,
    AccountDeleted,
    ProfileUpdated,
    GroupUpdated,
    GroupDeleted,
)


class _Ending(NamedTuple):
    stream: StreamId
    version: int
    event: Event


class Removals:
    """`unsent_seconds`: how long an attachment may wait to be sent."""

    def __init__(
        self,
        pool: Pool,
        executor: Executor,
        keyring: Keyring,
        objects: Objects,
        logger: Logger,
        *,
        unsent_seconds: float,
        unfinished_seconds: float = UNFINISHED_SECONDS,
        metrics: UpkeepMetrics | None = None,
    ) -> None:
        self._metrics = metrics or UpkeepMetrics()
        self._pool = pool
        self._executor = executor
        self._keyring = keyring
        self._objects = objects
        self._logger = logger
        self._unsent_seconds = unsent_seconds
        self._unfinished_seconds = unfinished_seconds

    async def run(self) -> None:
        """For as long as the process lives; what fails is done again, with growing pauses."""
        pause_seconds, swept_at = POLL_SECONDS, float("-inf")
        while True:
            try:
                await self.remove_ended()
                if time.monotonic() - swept_at >= SWEEP_SECONDS:
                    await self.sweep()
                    swept_at = time.monotonic()
                pause_seconds = POLL_SECONDS
            except (MessengerError, psycopg.Error, *DOWN) as error:
                self._metrics.failures.labels("objects").inc()
                self._logger.warning("objects_not_removed", reason=first_line(error))
                pause_seconds = min(2 * pause_seconds, BACKOFF_SECONDS_MAX)
            await asyncio.sleep(pause_seconds)

    async def once(self) -> None:
        """All that there is to do now."""
        await self.sweep()
        await self.remove_ended()

    async def sweep(self) -> None:
        await self._end_unsent()
        await self._remove_unfinished()

    async def remove_ended(self) -> None:
        """What the log has ended since the last time."""
        async with self._pool.connection() as connection:
            head = (await event_log.head(connection)).position
        after = await self._position(REMOVED)
        self._count(after, head)
        while after < head:
            up_to = min(head, after + POSITIONS_AT_ONCE)
            endings = await self._endings(after, up_to)
            self._metrics.removals_outstanding.set(len(endings))
            await self._remove(endings)
            after = up_to
            await self._move(REMOVED, after)
            self._metrics.removals_outstanding.set(0)
            self._count(after, head)

    def _count(self, after: int, head: int) -> None:
        self._metrics.removals_position.set(after)
        self._metrics.removals_lag_events.set(head - after)

    async def _endings(self, after: int, up_to: int) -> list[_Ending]:
        arguments = {"after": after, "up_to": up_to, "types": [event.type for event in HANDLED]}
        rows = await self._rows(ENDINGS, arguments)
        endings = [
            _Ending(stream, version, event)
            for event, (*_, stream, version) in zip(await self._read(rows), rows, strict=True)
            if event is not None
        ]
        await event_log.open_events([ending.event for ending in endings], self._keyring)
        return endings

    async def _remove(self, endings: Sequence[_Ending]) -> None:
        messages, senders, attachments = [], [], []
        for ending in endings:
            match ending.event:
                case MessageDeleted():
                    messages.append(ending.event.message_id)
                case AttachmentRemoved():
                    attachments.append(ending.stream)
                case AccountDeleted():
                    if ending.event.erase_messages:
                        senders.append(ending.event.user_id)
                    await self._remove_below(ending.event.user_id)
                    await self._remove_begun(ending.event.user_id)
                case GroupDeleted():
                    await self._remove_below(ending.event.chat_id)
                case ProfileUpdated():
                    await self._remove_predecessor(ending, ending.event.user_id)
                case GroupUpdated():
                    await self._remove_predecessor(ending, ending.event.chat_id)
                case _:
                    pass
        await self._remove_uploads(UPLOADS_OF_MESSAGES, messages)
        await self._remove_uploads(UPLOADS_OF_SENDERS, senders)
        await self._remove_uploads(UPLOADS_OF_STREAMS, attachments)

    async def _remove_uploads(self, statement: LiteralString, whose: Sequence[str]) -> None:
        if not whose:
            return
        for uploaded in await self._read(await self._rows(statement, (list(whose),))):
            if isinstance(uploaded, AttachmentUploaded):
                await self._objects.remove([uploaded.key(size) for size in SIZES])

    async def _remove_below(self, owner: Owner) -> None:
        """Every avatar there is of one who has none any more."""
        while keys := await self._objects.below(avatar_prefix(owner), OBJECTS_AT_ONCE):
            await self._objects.remove(keys)

    async def _remove_begun(self, uploader: UserId) -> None:
        """What nobody will finish. The notes stay: a store that hung may still write it, and the
        sweep comes when it no longer can."""
        for stream, keys in await self._rows(UNFINISHED_OF, (uploader,)):
            if not await self._counts(stream, keys):
                await self._objects.remove(keys)

    async def _remove_predecessor(self, ending: _Ending, owner: Owner) -> None:
        """The avatar that this event replaced. One whose key is destroyed is removed with the
        account."""
        arguments = {
            "stream": ending.stream,
            "version": ending.version,
            "type": ending.event.type,
        }
        rows = await self._rows(PREDECESSOR, arguments)
        before = [event for event in await self._read(rows) if event is not None]
        await event_log.open_events(before, self._keyring)
        now = avatar_key(getattr(ending.event, "avatar_url", None), owner)
        keys = [avatar_key(getattr(event, "avatar_url", None), owner) for event in before]
        await self._objects.remove([key for key in keys if key is not None and key != now])

    async def _end_unsent(self) -> None:
        after = await self._position(SENT_IN_TIME)
        while True:
            arguments = {
                "after": after,
                "seconds": self._unsent_seconds,
                "limit": UPLOADS_AT_ONCE,
            }
            rows = await self._rows(OLD_UPLOADS, arguments)
            for position, attachment_id in rows:
                remove = RemoveAttachment(attachment_id=AttachmentId(attachment_id))
                await self._executor.execute(Request(remove, None))
                after = position
            if not rows:
                return
            await self._move(SENT_IN_TIME, after)

    async def _remove_unfinished(self) -> None:
        arguments = {"seconds": self._unfinished_seconds, "limit": UPLOADS_AT_ONCE}
        while rows := await self._rows(UNFINISHED, arguments):
            for upload_id, stream, keys in rows:
                if not await self._counts(stream, keys):
                    await self._objects.remove(keys)
                async with self._pool.connection() as connection:
                    await connection.execute(FINISH, (upload_id,))

    async def _counts(self, stream: StreamId, keys: Sequence[str]) -> bool:
        """Whether the log names the objects after all."""
        state = await self._executor.state(stream)
        if category(stream) == "attachment":
            return bool(state.exists and not state.is_removed)
        owner = stream.partition("-")[2]
        of_chat = category(stream) == "chat"
        return avatar_key(state.avatar_url, ChatId(owner) if of_chat else UserId(owner)) in keys

    async def _read(self, rows: Sequence[Any]) -> list[Event | None]:
        """The events of rows that begin with position, type, schema version and data. None for what
        can't be read and an operator had a read model do without; else raises LogError, for newer
        code may know what it ends."""
        events = [codec.readable(*row[1:4]) for row in rows]
        unread = {row[0]: row[1] for row, event in zip(rows, events, strict=True) if event is None}
        for (position,) in await self._rows(SKIPPED, (list(unread),)) if unread else ():
            del unread[position]
        for position, type_name in unread.items():
            raise LogError(
                f"event {position} ({type_name}) can't be read: objects are removed up to it, until "
                "code that can read it runs, or a read model skips it"
            )
        return events

    async def _position(self, work: str) -> int:
        rows = await self._rows(POSITION, (work,))
        return rows[0][0] if rows else 0

    async def _move(self, work: str, position: int) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(MOVE, (work, position))

    async def _rows(self, statement: LiteralString, arguments: Any) -> list[Any]:
        async with self._pool.connection() as connection:
            return await (await connection.execute(statement, arguments)).fetchall()
