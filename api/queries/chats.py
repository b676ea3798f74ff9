"""Chats: the caller's active ones (last message first), one of them, its participants."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from api.operations import Call, Operation, Parameter
from api.queries.messages import USED as USED_BY_MESSAGES
from api.queries.messages import Message, messages_by_id
from api.queries.query import Query, Time, id_parameter, operation, whole_parameter
from api.queries.users import User
from api.read_models import Snapshot
from domain.refusals import Invalid, NotFound

DEFAULT_LIMIT = 50
MAX_LIMIT = 100

MINE = """
    SELECT
        c.id,
        c.type,
        c.name,
        c.slug,
        c.avatar_url,
        c.owner_id,
        c.created_at,
        c.updated_at,
        c.last_message_at,
        p.role AS my_role,
        coalesce(u.count, 0) AS unread_count,
        s.last_message_id
    FROM chat_participants AS p
    JOIN chats AS c ON c.id = p.chat_id
    LEFT JOIN unread_counts AS u ON u.user_id = p.user_id AND u.chat_id = p.chat_id
    LEFT JOIN chat_sequences AS s ON s.chat_id = p.chat_id
    WHERE p.user_id = %(caller)s
        AND p.left_at IS NULL
        AND NOT c.is_deleted
        AND (coalesce(c.last_message_at, c.created_at), c.id) < (%(before)s, %(before_id)s)
    ORDER BY coalesce(c.last_message_at, c.created_at) DESC, c.id DESC
    LIMIT %(limit)s
"""

ONE = """
    SELECT
        c.id,
        c.type,
        c.name,
        c.slug,
        c.avatar_url,
        c.owner_id,
        c.created_at,
        c.updated_at,
        c.last_message_at,
        p.role AS my_role,
        coalesce(u.count, 0) AS unread_count,
        s.last_message_id
    FROM chat_participants AS p
    JOIN chats AS c ON c.id = p.chat_id
    LEFT JOIN unread_counts AS u ON u.user_id = p.user_id AND u.chat_id = p.chat_id
    LEFT JOIN chat_sequences AS s ON s.chat_id = p.chat_id
    WHERE p.user_id = %(caller)s
        AND p.chat_id = %(chat_id)s
        AND p.left_at IS NULL
        AND NOT c.is_deleted
"""

# Nothing for who is not in the chat; who is, sees at least themselves.
PARTICIPANTS = """
    SELECT
        p.role,
        p.joined_at,
        p.user_id AS id,
        coalesce(u.username, '') AS username,
        u.display_name,
        u.avatar_url,
        coalesce(u.status, 'offline') AS status,
        u.last_seen,
        coalesce(u.created_at, p.joined_at) AS created_at
    FROM chat_participants AS me
    JOIN chats AS c ON c.id = me.chat_id
    JOIN chat_participants AS p ON p.chat_id = me.chat_id
    LEFT JOIN users AS u ON u.id = p.user_id
    WHERE me.chat_id = %(chat_id)s
        AND me.user_id = %(caller)s
        AND me.left_at IS NULL
        AND NOT c.is_deleted
        AND p.left_at IS NULL
    ORDER BY p.joined_at, p.user_id
"""

Role = Literal["owner", "admin", "member"]


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    type: Literal["direct", "group"]
    name: str | None
    slug: str | None
    avatar_url: str | None
    owner_id: UUID | None
    created_at: Time
    updated_at: Time
    last_message_at: Time | None
    my_role: Role
    unread_count: int
    last_message: Message | None


class Chats(msgspec.Struct, frozen=True):
    items: list[Chat]
    next_cursor: str | None


class Participant(msgspec.Struct, frozen=True, kw_only=True):
    user: User
    role: Role
    joined_at: Time


class Participants(msgspec.Struct, frozen=True):
    items: list[Participant]


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """The last chat of a page: the next one begins after it."""

    before: Time
    before_id: UUID


FIRST_PAGE = Cursor(datetime.fromisoformat("9999-12-31T00:00:00Z"), UUID(int=2**128 - 1))


async def chats(call: Call, snapshot: Snapshot) -> Chats:
    limit = call.inbound.whole("limit", default=DEFAULT_LIMIT, low=1, high=MAX_LIMIT)
    cursor = _read_cursor(call.inbound.parameters.get("cursor"))
    arguments: dict[str, Any] = {
        "caller": call.caller.user_id,
        "before": cursor.before,
        "before_id": cursor.before_id,
        "limit": limit + 1,
    }
    rows = await snapshot.rows(MINE, arguments)
    page = rows[:limit]
    items = await _with_last_messages(page, call, snapshot)
    has_more = len(rows) > limit
    return Chats(items, _write_cursor(items[-1]) if has_more else None)


async def chat(call: Call, snapshot: Snapshot) -> Chat:
    arguments = {"caller": call.caller.user_id, "chat_id": call.inbound.id("chat_id")}
    rows = await snapshot.rows(ONE, arguments)
    if not rows:
        raise NotFound("there is no such chat")
    return (await _with_last_messages(rows, call, snapshot))[0]


async def participants(call: Call, snapshot: Snapshot) -> Participants:
    arguments = {"caller": call.caller.user_id, "chat_id": call.inbound.id("chat_id")}
    rows = await snapshot.rows(PARTICIPANTS, arguments)
    if not rows:
        raise NotFound("there is no such chat")
    return Participants(
        [
            Participant(role=row.pop("role"), joined_at=row.pop("joined_at"), user=User(**row))
            for row in rows
        ]
    )


async def _with_last_messages(
    rows: list[dict[str, Any]], call: Call, snapshot: Snapshot
) -> list[Chat]:
    last_ids = [row["last_message_id"] for row in rows if row["last_message_id"] is not None]
    messages = await messages_by_id(last_ids, call.caller.user_id, snapshot)
    return [Chat(last_message=messages.get(row.pop("last_message_id")), **row) for row in rows]


def _write_cursor(last: Chat) -> str:
    cursor = Cursor(last.last_message_at or last.created_at, last.id)
    return urlsafe_b64encode(msgspec.json.encode(cursor)).rstrip(b"=").decode()


def _read_cursor(text: str | None) -> Cursor:
    if text is None:
        return FIRST_PAGE
    try:
        padding = "=" * (-len(text) % 4)
        return msgspec.json.decode(urlsafe_b64decode(text + padding), type=Cursor)
    except (ValueError, RecursionError):
        raise Invalid("this is no cursor that was given out", field="cursor") from None


CHAT_ID = id_parameter("chat_id", "A chat that the caller is in.")
LIMIT = whole_parameter("limit", f"Default {DEFAULT_LIMIT}.", low=1, high=MAX_LIMIT)
CURSOR = Parameter(
    "cursor", "query", {"type": "string", "maxLength": 200}, "The `next_cursor` of a page before."
)
USED = (*USED_BY_MESSAGES, "unread")

OPERATIONS: tuple[Operation, ...] = tuple(
    operation(query)
    for query in (
        Query("/v1/chats", "chats", "The caller's chats", chats, USED, Chats, (LIMIT, CURSOR), ()),
        Query("/v1/chats/{chat_id:str}", "chat", "A chat", chat, USED, Chat, (CHAT_ID,)),
        Query(
            "/v1/chats/{chat_id:str}/participants",
            "participants",
            "Who is in a chat",
            participants,
            ("chats", "users"),
            Participants,
            (CHAT_ID,),
        ),
    )
)
