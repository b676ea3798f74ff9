"""Messages: a chat's history in pages, and one by id.

A message is shown as contract.md's section 3 has it. Names are joined at read, so they are
those of the day; what was reacted, and how far the caller's own got, comes with each row: a
page is one statement.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal, LiteralString, NamedTuple
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from api.operations import Call, Operation, Parameter
from api.queries.attachments import Attachment, attachments_of
from api.queries.query import Query, Time, id_parameter, operation, whole_parameter
from api.read_models import Snapshot
from domain.refusals import Invalid, NotFound

DEFAULT_LIMIT = 50
MAX_LIMIT = 100
MAX_SEQ = 2**31 - 1

REPLY_TO_DELETED = "[Message Deleted]"

MEMBERSHIP = """
    SELECT
    FROM chat_participants AS p
    JOIN chats AS c ON c.id = p.chat_id
    WHERE p.chat_id = %(chat_id)s
        AND p.user_id = %(caller)s
        AND p.left_at IS NULL
        AND NOT c.is_deleted
"""

# Each statement finds its page of messages first.
PAGE: LiteralString = """
    WITH page AS MATERIALIZED (
"""

# Of what was replied to the columns of `_Replied`, and where they are from. Found through the
# places, so that each is looked for in its own partition only.
REPLIED: LiteralString = """
    SELECT
        place.id,
        reply.sender_id,
        sender.display_name AS sender_name,
        reply.content,
        reply.is_deleted
    FROM message_places AS place
    JOIN messages AS reply ON reply.id = place.id
        AND reply.created_at = place.created_at
        AND reply.created_at >= current_setting(%(sent_from)s)::timestamptz
        AND reply.created_at <= current_setting(%(sent_to)s)::timestamptz
    LEFT JOIN users AS sender ON sender.id = reply.sender_id
"""

# What is shown of the messages in `page`; `_Shown` has the columns. Reactions, delivery and what
# was replied to are gathered for the page at once: a subquery a message took a third of the
# whole. How far a message got is counted for the caller's own only. What was replied to is
# looked for in the page's own months, where nearly all of it is; OLDER finds the rest.
SHOWN: LiteralString = (
    """
    replied AS MATERIALIZED (
"""
    + REPLIED
    + """
        WHERE place.id = ANY (ARRAY (SELECT reply_to_id FROM page))
    ),
    reactions AS MATERIALIZED (
        SELECT
            message_id,
            json_agg(
                json_build_object('emoji', emoji, 'count', count, 'me', me)
                ORDER BY first_at, emoji
            ) AS items
        FROM (
            SELECT
                r.message_id,
                r.emoji,
                count(*) AS count,
                bool_or(r.user_id = %(caller)s) AS me,
                min(r.created_at) AS first_at
            FROM page
            JOIN message_reactions AS r ON r.message_id = page.id
            GROUP BY r.message_id, r.emoji
        ) AS grouped
        GROUP BY message_id
    ),
    delivery AS MATERIALIZED (
        SELECT
            d.message_id,
            count(*) AS recipients,
            count(*) FILTER (WHERE d.status <> 'pending') AS delivered,
            count(*) FILTER (WHERE d.status = 'read') AS read
        FROM page
        JOIN message_delivery AS d ON d.message_id = page.id
        WHERE page.sender_id = %(caller)s
        GROUP BY d.message_id
    )
    SELECT
        m.id,
        m.chat_id,
        m.seq,
        m.position,
        m.sender_id,
        sender.display_name AS sender_name,
        m.content,
        m.content_type,
        m.metadata,
        m.reply_to_id,
        replied.sender_id AS reply_sender_id,
        replied.sender_name AS reply_sender_name,
        replied.content AS reply_content,
        replied.is_deleted AS reply_is_deleted,
        m.is_edited,
        m.edited_at,
        m.is_deleted,
        m.deleted_at,
        m.created_at,
        reactions.items AS reactions,
        coalesce(delivery.recipients, 0) AS recipients,
        coalesce(delivery.delivered, 0) AS delivered,
        coalesce(delivery.read, 0) AS read
    FROM page AS m
    LEFT JOIN users AS sender ON sender.id = m.sender_id
    LEFT JOIN replied ON replied.id = m.reply_to_id
    LEFT JOIN reactions ON reactions.message_id = m.id
    LEFT JOIN delivery ON delivery.message_id = m.id
"""
)

# The months in which messages were sent, told to the statement after it by settings of the
# transaction: before that one starts, PostgreSQL leaves out all partitions but those. Else each
# page would look into every month that there ever was. The settings' names are parameters, so
# that a plan does not depend on what they were when it was made.
SETTINGS = {"sent_from": "messenger.sent_from", "sent_to": "messenger.sent_to"}

SPAN: LiteralString = """
    SELECT
        set_config(
            %(sent_from)s,
            coalesce(date_trunc('month', min(created_at), 'UTC'), 'infinity')::text,
            true
        ),
        set_config(%(sent_to)s, coalesce(max(created_at), '-infinity')::text, true)
    FROM (
        SELECT created_at
        FROM message_places
"""

SPAN_BEFORE: LiteralString = (
    SPAN
    + """
        WHERE chat_id = %(chat_id)s
            AND seq < %(seq)s
        ORDER BY seq DESC
        LIMIT %(limit)s
    ) AS page
"""
)

SPAN_AFTER: LiteralString = (
    SPAN
    + """
        WHERE chat_id = %(chat_id)s
            AND seq > %(seq)s
        ORDER BY seq
        LIMIT %(limit)s
    ) AS page
"""
)

SPAN_OF_IDS: LiteralString = (
    SPAN
    + """
        WHERE id = ANY (%(ids)s)
    ) AS page
"""
)

# The page first, for participants only; then what is shown with it. The inner limit is
# MAX_LIMIT and one more: a number that the planner sees, so that it plans for a page and not
# for a tenth of all that a chat may hold.
PAGE_OF_CHAT: LiteralString = (
    PAGE
    + """
        SELECT *
        FROM (
            SELECT *
            FROM messages
            WHERE chat_id = %(chat_id)s
                AND created_at >= current_setting(%(sent_from)s)::timestamptz
                AND created_at <= current_setting(%(sent_to)s)::timestamptz
                AND EXISTS (
"""
    + MEMBERSHIP
    + """
                )
"""
)

BEFORE: LiteralString = (
    PAGE_OF_CHAT
    + """
                AND seq < %(seq)s
            ORDER BY seq DESC
            LIMIT 101
        ) AS longest
        ORDER BY seq DESC
        LIMIT %(limit)s
    ),
"""
    + SHOWN
    + """
    ORDER BY m.seq DESC
"""
)

AFTER: LiteralString = (
    PAGE_OF_CHAT
    + """
                AND seq > %(seq)s
            ORDER BY seq
            LIMIT 101
        ) AS longest
        ORDER BY seq
        LIMIT %(limit)s
    ),
"""
    + SHOWN
    + """
    ORDER BY m.seq
"""
)

# Through the places, so that each is looked for in its own partition only; they first, else it
# might begin with all that there is in the caller's chats.
BY_ID: LiteralString = (
    PAGE
    + """
        WITH here AS MATERIALIZED (
            SELECT id, chat_id, created_at
            FROM message_places
            WHERE id = ANY (%(ids)s)
        )
        SELECT m.*
        FROM here
        JOIN messages AS m ON m.id = here.id
            AND m.created_at = here.created_at
            AND m.created_at >= current_setting(%(sent_from)s)::timestamptz
            AND m.created_at <= current_setting(%(sent_to)s)::timestamptz
        JOIN chat_participants AS p ON p.chat_id = here.chat_id
        JOIN chats AS c ON c.id = here.chat_id
        WHERE p.user_id = %(caller)s
            AND p.left_at IS NULL
            AND NOT c.is_deleted
    ),
"""
    + SHOWN
)

OLDER: LiteralString = (
    REPLIED
    + """
    WHERE place.id = ANY (%(ids)s)
"""
)


class Sender(msgspec.Struct, frozen=True):
    id: UUID
    display_name: str | None


class ReplyTo(msgspec.Struct, frozen=True):
    id: UUID
    sender: Sender | None
    content: str


class Reaction(msgspec.Struct, frozen=True):
    emoji: str
    count: int
    me: bool


class Delivery(msgspec.Struct, frozen=True):
    """`delivered` counts those delivered or read."""

    recipients: int
    delivered: int
    read: int


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """`delivery` is there on the caller's own only."""

    id: UUID
    chat_id: UUID
    seq: int
    position: int
    sender: Sender | None
    content: str
    content_type: Literal["text", "image", "system"]
    metadata: dict[str, Any]
    reply_to: ReplyTo | None
    is_edited: bool
    edited_at: Time | None
    is_deleted: bool
    deleted_at: Time | None
    created_at: Time
    reactions: list[Reaction] = []
    attachments: list[Attachment] = []
    delivery: Delivery | UnsetType = UNSET


class Messages(msgspec.Struct, frozen=True):
    items: list[Message]
    has_more: bool


class _Shown(NamedTuple):
    """A row: a page has fifty, and as dicts they would take a third of what a page takes here."""

    id: UUID
    chat_id: UUID
    seq: int
    position: int
    sender_id: UUID | None
    sender_name: str | None
    content: str
    content_type: Literal["text", "image", "system"]
    metadata: dict[str, Any]
    reply_to_id: UUID | None
    reply_sender_id: UUID | None
    reply_sender_name: str | None
    reply_content: str | None
    reply_is_deleted: bool | None
    is_edited: bool
    edited_at: datetime | None
    is_deleted: bool
    deleted_at: datetime | None
    created_at: datetime
    reactions: list[dict[str, Any]] | None
    recipients: int
    delivered: int
    read: int


class _Replied(NamedTuple):
    """What was replied to."""

    id: UUID
    sender_id: UUID | None
    sender_name: str | None
    content: str
    is_deleted: bool


async def history(call: Call, snapshot: Snapshot) -> Messages:
    limit = call.inbound.whole("limit", default=DEFAULT_LIMIT, low=1, high=MAX_LIMIT)
    is_after, seq = _place(call)
    arguments: dict[str, Any] = {
        "caller": call.caller.user_id,
        "chat_id": call.inbound.id("chat_id"),
        "seq": seq,
        "limit": limit + 1,
        **SETTINGS,
    }
    snapshot.beforehand(SPAN_AFTER if is_after else SPAN_BEFORE, arguments)
    rows = await snapshot.rows_for(_shown, AFTER if is_after else BEFORE, arguments)
    if not rows and await snapshot.row(MEMBERSHIP, arguments) is None:
        raise NotFound("there is no such chat")
    messages = await _messages(rows[:limit], call.caller.user_id, snapshot)
    return Messages(messages, has_more=len(rows) > limit)


async def message(call: Call, snapshot: Snapshot) -> Message:
    message_id = UUID(call.inbound.id("message_id"))
    found = await messages_by_id([message_id], call.caller.user_id, snapshot)
    if message_id not in found:
        raise NotFound("there is no such message")
    return found[message_id]


async def messages_by_id(
    ids: Sequence[UUID], caller: str, snapshot: Snapshot
) -> dict[UUID, Message]:
    """Those of them that the caller may see."""
    if not ids:
        return {}
    arguments = {"ids": list(ids), "caller": caller, **SETTINGS}
    snapshot.beforehand(SPAN_OF_IDS, arguments)
    rows = await snapshot.rows_for(_shown, BY_ID, arguments)
    return {message.id: message for message in await _messages(rows, caller, snapshot)}


def _place(call: Call) -> tuple[bool, int]:
    """Whether to go on after a `seq` or back before it."""
    given = call.inbound.parameters
    if "before" in given and "after" in given:
        raise Invalid("give either `before` or `after`", field="after")
    if "after" in given:
        return True, call.inbound.whole("after", default=0, low=0, high=MAX_SEQ)
    return False, call.inbound.whole("before", default=MAX_SEQ, low=0, high=MAX_SEQ)


def _shown(names: tuple[str, ...]) -> Callable[[Sequence[Any]], _Shown]:
    assert names == _Shown._fields
    return _Shown._make


def _replied(names: tuple[str, ...]) -> Callable[[Sequence[Any]], _Replied]:
    assert names == _Replied._fields
    return _Replied._make


async def _messages(rows: list[_Shown], caller: str, snapshot: Snapshot) -> list[Message]:
    """Most pages have no images, and reply to nothing of long ago: those that do cost more."""
    images = [row.id for row in rows if row.content_type == "image" and not row.is_deleted]
    attachments = await attachments_of(images, snapshot)
    replies = await _replies(rows, snapshot)
    caller_id = UUID(caller)
    return [_message(row, attachments.get(row.id, []), replies, caller_id) for row in rows]


async def _replies(rows: list[_Shown], snapshot: Snapshot) -> dict[UUID, _Replied]:
    """What was replied to, by id: also in months that the rows are not of."""
    wanted = {row.reply_to_id for row in rows if row.reply_to_id is not None}
    found = {reply.id: reply for row in rows if (reply := _reply_of(row)) is not None}
    if older := wanted - found.keys():
        arguments = {"ids": list(older), **SETTINGS}
        snapshot.beforehand(SPAN_OF_IDS, arguments)
        for reply in await snapshot.rows_for(_replied, OLDER, arguments):
            found[reply.id] = reply
    return found


def _reply_of(row: _Shown) -> _Replied | None:
    if row.reply_to_id is None or row.reply_content is None or row.reply_is_deleted is None:
        return None
    return _Replied(
        row.reply_to_id,
        row.reply_sender_id,
        row.reply_sender_name,
        row.reply_content,
        row.reply_is_deleted,
    )


def _message(
    row: _Shown, attachments: list[Attachment], replies: dict[UUID, _Replied], caller: UUID
) -> Message:
    is_own = row.sender_id == caller
    return Message(
        id=row.id,
        chat_id=row.chat_id,
        seq=row.seq,
        position=row.position,
        sender=_sender(row.sender_id, row.sender_name),
        content=row.content,
        content_type=row.content_type,
        metadata=row.metadata,
        reply_to=None if row.reply_to_id is None else _reply_to(row.reply_to_id, replies),
        is_edited=row.is_edited,
        edited_at=row.edited_at,
        is_deleted=row.is_deleted,
        deleted_at=row.deleted_at,
        created_at=row.created_at,
        reactions=[Reaction(**reaction) for reaction in row.reactions or ()],
        attachments=attachments,
        delivery=Delivery(row.recipients, row.delivered, row.read) if is_own else UNSET,
    )


def _reply_to(message_id: UUID, replies: dict[UUID, _Replied]) -> ReplyTo:
    reply = replies.get(message_id)
    if reply is None:
        return ReplyTo(message_id, None, REPLY_TO_DELETED)
    content = REPLY_TO_DELETED if reply.is_deleted else reply.content
    return ReplyTo(message_id, _sender(reply.sender_id, reply.sender_name), content)


def _sender(sender_id: UUID | None, display_name: str | None) -> Sender | None:
    return None if sender_id is None else Sender(sender_id, display_name)


# The participants table says who may read, the users table who they are.
USED = ("chats", "delivery", "messages", "reactions", "users")

PAGING: tuple[Parameter, ...] = (
    whole_parameter("before", "Only messages before this `seq`.", low=0, high=MAX_SEQ),
    whole_parameter("after", "Only messages after this `seq`, oldest first.", low=0, high=MAX_SEQ),
    whole_parameter("limit", f"Default {DEFAULT_LIMIT}.", low=1, high=MAX_LIMIT),
)

OPERATIONS: tuple[Operation, ...] = tuple(
    operation(query)
    for query in (
        Query(
            "/v1/chats/{chat_id:str}/messages",
            "messages",
            "A chat's messages, newest first (oldest first with `after`)",
            history,
            USED,
            Messages,
            (id_parameter("chat_id", "A chat that the caller is in."), *PAGING),
        ),
        Query(
            "/v1/messages/{message_id:str}",
            "message",
            "A message",
            message,
            USED,
            Message,
            (id_parameter("message_id", "A message of a chat that the caller is in."),),
        ),
    )
)
