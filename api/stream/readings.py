"""What the stream reads from PostgreSQL: read models for where a user stands, the log for all else.

A read model says what was at its checkpoint; the log says what came after. So none of this
depends on how far the read models are.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidTag

from api.read_models import ReadModels, Snapshot
from api.stream.moves import moves_of
from api.stream.people import Known, known_by
from api.stream.shown import Quoted
from api.stream.spans import OwnMove, Spans
from domain.attachment import AttachmentUploaded
from domain.chat import ChatEvent, GroupDeleted
from domain.contact import CONTACT_EVENTS, ContactEvent, Standing
from domain.event import Event, Recorded
from domain.ids import (
    AttachmentId,
    ChatId,
    MessageId,
    UserId,
    attachment_stream,
    chat_stream,
    message_stream,
)
from domain.message import MessageDeleted, MessageEdited, MessageSent, SystemMessageSent
from infra import codec, event_log
from infra.database import Pool
from infra.keyring import Keyring
from projections.messages import DELETED_CONTENT, SENTENCES

ROOMS_LOADED_AT_ONCE = 200
STATEMENT_TIMEOUT_MS = 30_000
USED = ("chats", "contacts", "delivery")
CONTACT_TYPES = [event.type for event in CONTACT_EVENTS]

CHECKPOINTS = """
    SELECT projection, position
    FROM projection_checkpoints
    WHERE projection IN ('chats', 'contacts', 'delivery')
"""

CHATS = """
    SELECT p.chat_id
    FROM chat_participants AS p
    JOIN chats AS c ON c.id = p.chat_id
    WHERE p.user_id = %(caller)s AND p.left_at IS NULL AND NOT c.is_deleted
"""

# What each of the pair sees says what stands between them.
CONTACTS = """
    SELECT user_id, contact_id, status, requested_by, created_at, accepted_at
    FROM contacts
    WHERE user_id = %(caller)s OR contact_id = %(caller)s
"""

PENDING = """
    SELECT chat_id, min(position) AS first, max(position) AS last
    FROM message_delivery
    WHERE user_id = %(caller)s AND status = 'pending'
    GROUP BY chat_id
"""

# The types are those of the index event_log_moves.
MOVES_NAMING = """
    SELECT position, recorded_at, type, schema_version, data::text
    FROM event_log
    WHERE position > %(after)s
        AND position <= %(up_to)s
        AND type IN (
            'direct_chat_opened', 'group_created', 'members_added', 'member_removed',
            'member_left', 'group_deleted'
        )
        AND (strpos(data::text, %(caller)s) > 0 OR type = 'group_deleted')
    ORDER BY position
"""

MOVES_OF = """
    SELECT position, recorded_at, type, schema_version, data::text
    FROM event_log
    WHERE stream = ANY (%(streams)s)
        AND position <= %(up_to)s
        AND type IN (
            'direct_chat_opened', 'group_created', 'members_added', 'member_removed',
            'member_left', 'group_deleted'
        )
        AND (%(naming)s::text IS NULL OR strpos(data::text, %(naming)s) > 0)
    ORDER BY position
"""

SINCE = """
    SELECT position, recorded_at, type, schema_version, data::text
    FROM event_log
    WHERE position > %(after)s
        AND position <= %(up_to)s
        AND (
            type = ANY (%(contacts)s) AND strpos(data::text, %(caller)s) > 0
            OR type = 'message_sent' AND data ->> 'chat_id' = ANY (%(chats)s)
        )
    ORDER BY position
"""

MESSAGES_NOW = """
    SELECT position, recorded_at, type, schema_version, data::text
    FROM event_log
    WHERE stream = ANY (%(streams)s)
        AND type IN ('message_sent', 'message_edited', 'message_deleted', 'system_message_sent')
    ORDER BY position
"""

ATTACHMENTS = """
    SELECT position, recorded_at, type, schema_version, data::text
    FROM event_log
    WHERE stream = ANY (%(streams)s) AND type = 'attachment_uploaded'
"""

DELETED = """
    SELECT stream
    FROM event_log
    WHERE stream = ANY (%(streams)s) AND type = 'message_deleted'
"""

PAGE = """
    SELECT position, recorded_at, type, schema_version, data::text
    FROM event_log
    WHERE position > %(after)s
        AND position <= %(up_to)s
        AND (
            data ->> 'chat_id' = ANY (%(chats)s)
            OR type = ANY (%(contacts)s) AND strpos(data::text, %(caller)s) > 0
            OR type IN ('profile_updated', 'account_deleted')
            OR type IN ('user_registered', 'password_changed')
                AND data ->> 'user_id' = %(caller)s
        )
    ORDER BY position
    LIMIT %(limit)s
"""


STATUSES = """
    SELECT position, recorded_at, type, schema_version, data::text
    FROM event_log
    WHERE position > %(after)s AND position <= %(up_to)s AND type = 'status_changed'
    ORDER BY position
"""


class Range(NamedTuple):
    """First and last position of messages that a user does not have yet."""

    first: int
    last: int


class Whereabouts(NamedTuple):
    """Where a user stands at the log's head `position`: all that is needed to route to them."""

    position: int
    spans: Spans
    contacts: dict[UserId, Known]
    pending: dict[ChatId, Range]


class _Read(NamedTuple):
    """What the read models have of a user: the chats as of `chats_at`, the rest of `rest_at`."""

    chats: set[ChatId]
    chats_at: int
    contacts: dict[UserId, Known]
    pending: dict[ChatId, Range]
    rest_at: int


class Readings:
    """Every method raises what psycopg raises, or Unavailable."""

    def __init__(self, pool: Pool, keyring: Keyring, read_models: ReadModels) -> None:
        self._pool = pool
        self._keyring = keyring
        self._read_models = read_models

    async def head(self) -> event_log.Head:
        async with self._pool.connection() as connection:
            return await event_log.head(connection)

    async def read(self, *, after: int, up_to: int, types: Collection[str]) -> list[Recorded]:
        """A whole range; see `event_log.read`. What can't be read, `event` is None for."""
        async with self._pool.connection() as connection:
            return await event_log.read(
                connection, after=after, up_to=up_to, types=types, decode=codec.readable
            )

    async def open(self, events: Sequence[Event]) -> list[Event]:
        """Opens sealed fields in place, or blanks them where they were tampered with: those
        events are answered. At most OPENED_AT_ONCE of them."""
        await self._keyring.load(codec.key_ids(events))
        tampered = []
        for event in events:
            try:
                codec.open_sealed(event, self._keyring)
            except InvalidTag:
                for field in codec.sealed_fields(event):
                    msgspec.structs.force_setattr(event, field, None)
                tampered.append(event)
        return tampered

    async def whereabouts(self, user_id: UserId, *, since: int) -> Whereabouts:
        """As of the head; the spans reach back to `since`."""
        read = await self._read_models_of(user_id)
        head = (await self.head()).position
        moves = await self.own_moves(user_id, after=min(read.chats_at, since), up_to=head)
        spans = Spans(read.chats, at=read.chats_at, moves=moves)
        pending = {
            chat_id: left
            for chat_id, found in read.pending.items()
            if (left := found if spans.shows(chat_id, head) else _after(found, since))
        }
        contacts = dict(read.contacts)
        since_then = await self._since(user_id, spans.chats, after=read.rest_at, up_to=head)
        for position, _, event in since_then:
            match event:
                case ContactEvent():
                    other = event.contact_id if event.user_id == user_id else event.user_id
                    contacts[other] = known_by(user_id, event.standing, position)
                case MessageSent() if event.sender_id != user_id:
                    first = pending.get(event.chat_id, Range(position, position)).first
                    pending[event.chat_id] = Range(first, position)
                case _:
                    pass
        return Whereabouts(head, spans, contacts, pending)

    async def rooms(self, chat_ids: Sequence[ChatId], *, up_to: int) -> list[Recorded]:
        """All the moves in these chats up to a position."""
        streams = [chat_stream(chat_id) for chat_id in chat_ids]
        return await self._select(MOVES_OF, {"streams": streams, "up_to": up_to, "naming": None})

    async def page(
        self, user_id: UserId, chats: Sequence[ChatId], *, after: int, up_to: int, limit: int
    ) -> list[Recorded]:
        """What may concern a user, sealed; the caller looks closer."""
        arguments = {
            "caller": user_id,
            "chats": list(chats),
            "contacts": CONTACT_TYPES,
            "after": after,
            "up_to": up_to,
            "limit": limit,
        }
        return await self._select(PAGE, arguments)

    async def statuses(self, *, after: int, up_to: int) -> list[Recorded]:
        """Everybody's changes of presence."""
        return await self._select(STATUSES, {"after": after, "up_to": up_to})

    async def quoted(self, message_ids: Collection[MessageId]) -> dict[MessageId, Quoted]:
        """What messages say now, opened."""
        if not message_ids:
            return {}
        streams = [message_stream(message_id) for message_id in message_ids]
        recorded = await self._select(MESSAGES_NOW, {"streams": streams})
        events = [event for _, _, event in recorded if event is not None]
        await self.open(events)
        found: dict[MessageId, Quoted] = {}
        for event in events:
            match event:
                case MessageSent() | MessageEdited():
                    quoted = Quoted(event.sender_id, event.content or DELETED_CONTENT)
                case SystemMessageSent():
                    quoted = Quoted(None, SENTENCES[event.kind])
                case MessageDeleted():
                    quoted = found[event.message_id]._replace(content=None)
                case _:
                    continue
            found[event.message_id] = quoted
        return found

    async def attachments(
        self, attachment_ids: Collection[AttachmentId]
    ) -> list[AttachmentUploaded]:
        """As they were uploaded, opened."""
        if not attachment_ids:
            return []
        streams = [attachment_stream(attachment_id) for attachment_id in attachment_ids]
        recorded = await self._select(ATTACHMENTS, {"streams": streams})
        found = [event for _, _, event in recorded if isinstance(event, AttachmentUploaded)]
        await self.open(found)
        return found

    async def deleted(self, message_ids: Collection[MessageId]) -> set[MessageId]:
        """Those of them that are deleted by now."""
        if not message_ids:
            return set()
        streams = {message_stream(message_id): message_id for message_id in message_ids}
        async with self._pool.connection() as connection:
            cursor = await connection.execute(DELETED, {"streams": list(streams)})
            return {streams[row[0]] for row in await cursor.fetchall()}

    async def _read_models_of(self, user_id: UserId) -> _Read:
        async def find(snapshot: Snapshot) -> _Read:
            arguments = {"caller": UUID(user_id)}
            checkpoints = await snapshot.rows(CHECKPOINTS, {})
            at = {row["projection"]: row["position"] for row in checkpoints}
            rest_at = min(at.get("contacts", 0), at.get("delivery", 0))
            chats = await snapshot.rows(CHATS, arguments)
            contacts = await snapshot.rows(CONTACTS, arguments)
            pending = await snapshot.rows(PENDING, arguments)
            return _Read(
                chats={ChatId(str(row["chat_id"])) for row in chats},
                chats_at=at.get("chats", 0),
                contacts=_standings(user_id, contacts, rest_at),
                pending={
                    ChatId(str(row["chat_id"])): Range(row["first"], row["last"]) for row in pending
                },
                rest_at=rest_at,
            )

        return (await self._read_models.read(USED, 0, find))[0]

    async def own_moves(self, user_id: UserId, *, after: int, up_to: int) -> list[OwnMove]:
        """Where the user joined and left, the ends of their groups among it."""
        recorded = await self._select(
            MOVES_NAMING, {"after": after, "up_to": up_to, "caller": user_id}
        )
        own = [move for one in recorded if (move := _own_move(user_id, one)) is not None]
        return own + await self._own_endings(user_id, recorded)

    async def _own_endings(self, user_id: UserId, recorded: list[Recorded]) -> list[OwnMove]:
        """The deletions of groups that the user was in: no such event names its members."""
        ended = {
            event.chat_id: position
            for position, _, event in recorded
            if isinstance(event, GroupDeleted)
        }
        if not ended:
            return []
        streams = [chat_stream(chat_id) for chat_id in ended]
        arguments = {"streams": streams, "up_to": max(ended.values()), "naming": user_id}
        was_in: dict[ChatId, bool] = {}
        for one in await self._select(MOVES_OF, arguments):
            move = _own_move(user_id, one)
            if move is not None:
                was_in[move.chat_id] = move.joins
        return [
            OwnMove(ended[chat_id], chat_id, joins=False)
            for chat_id, joined in was_in.items()
            if joined
        ]

    async def _since(
        self, user_id: UserId, chats: list[ChatId], *, after: int, up_to: int
    ) -> list[Recorded]:
        arguments = {
            "after": after,
            "up_to": up_to,
            "caller": user_id,
            "chats": chats,
            "contacts": CONTACT_TYPES,
        }
        return await self._select(SINCE, arguments)

    async def _select(self, statement: Any, arguments: dict[str, Any]) -> list[Recorded]:
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(statement, arguments)).fetchall()
        return [
            Recorded(position, at, codec.readable(type_name, version, data))
            for position, at, type_name, version, data in rows
        ]


def _after(found: Range, since: int) -> Range | None:
    """Of a chat that the user has left: what a catch-up brings; the rest they never get."""
    return Range(max(found.first, since + 1), found.last) if found.last > since else None


def _own_move(user_id: UserId, recorded: Recorded) -> OwnMove | None:
    event = recorded.event
    if not isinstance(event, ChatEvent):
        return None
    moves = moves_of(event)
    if user_id in moves.joining:
        return OwnMove(recorded.position, event.chat_id, joins=True)
    if user_id in moves.leaving:
        return OwnMove(recorded.position, event.chat_id, joins=False)
    return None


def _standings(user_id: UserId, rows: list[dict[str, Any]], at: int) -> dict[UserId, Known]:
    found: dict[UserId, Standing] = {}
    listed: set[UserId] = set()
    for row in rows:
        is_own = str(row["user_id"]) == user_id
        other = UserId(str(row["contact_id" if is_own else "user_id"]))
        found[other] = _with(found.get(other, Standing()), row)
        if is_own:
            listed.add(other)
    return {other: Known(at, standing, other in listed) for other, standing in found.items()}


def _with(standing: Standing, row: dict[str, Any]) -> Standing:
    """One user's row says whether that user blocks; either says whether it is accepted."""
    blocker = UserId(str(row["user_id"]))
    blocked_at: dict[UserId, datetime] = dict(standing.blocked_at)
    if row["status"] == "blocked":
        blocked_at[blocker] = row["created_at"]
    return msgspec.structs.replace(
        standing,
        accepted_at=standing.accepted_at or row["accepted_at"],
        blocked_at=blocked_at,
    )
