"""Chats: the caller's active ones (last message first), one of them, its participants.

One chat, and its participants, are as of one position where that can be had soon: a client that is new to a chat fetches
them, and goes on from there with the chat's events.
"""

from functools import partial
from typing import Any, Literal, LiteralString
from uuid import UUID

import msgspec

from api.operations import Call, Operation
from api.queries import messages, users
from api.queries.messages import Message, messages_by_id
from api.queries.paging import CURSOR, FIRST_PAGE, Cursor, read_cursor, write_cursor
from api.queries.query import Query, Time, id_parameter, operation, whole_parameter
from api.queries.users import User, shown_avatar, user_of
from api.queries.whole import MAX_APART, PLACE, Torn, answer_whole_or
from api.read_models import Snapshot
from domain.refusals import NotFound

DEFAULT_LIMIT = 50
MAX_LIMIT = 100

# What is shown of the chat `c` to its participant `p`, where `JOINS` adds to it.
SELECT_CHAT: LiteralString = """
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
        c.my_role,
        coalesce(counted.count, 0) AS unread_count,
        said.last_message_id,
        other.user_id,
"""

# One count by its whole key: joined, all of the caller's may be gone through for each chat. The
# other of a direct chat: of a group, the null finds none of its members.
JOINS: LiteralString = """
    LEFT JOIN LATERAL (
        SELECT count
        FROM unread_counts
        WHERE user_id = %(caller)s AND chat_id = c.id
        LIMIT 1
    ) AS counted ON true
    LEFT JOIN chat_sequences AS said ON said.chat_id = c.id
    LEFT JOIN chat_participants AS other
        ON other.chat_id = CASE WHEN c.type = 'direct' THEN c.id END
        AND other.user_id <> %(caller)s
    LEFT JOIN users AS u ON u.id = other.user_id
"""

# The page first, then what is shown with it.
MINE = (
    SELECT_CHAT
    + users.SHOWN
    + """
    FROM (
        SELECT
            one.*,
            p.role AS my_role
        FROM chat_participants AS p
        JOIN chats AS one ON one.id = p.chat_id
        WHERE p.user_id = %(caller)s
            AND p.left_at IS NULL
            AND NOT one.is_deleted
            AND (coalesce(one.last_message_at, one.created_at), one.id)
                < (%(before)s, %(before_id)s)
        ORDER BY coalesce(one.last_message_at, one.created_at) DESC, one.id DESC
        LIMIT %(limit)s
    ) AS c
"""
    + JOINS
    + users.BLOCK
    + """
    ORDER BY coalesce(c.last_message_at, c.created_at) DESC, c.id DESC
"""
)

ONE = (
    SELECT_CHAT
    + users.SHOWN
    + """
    FROM (
        SELECT
            one.*,
            p.role AS my_role
        FROM chat_participants AS p
        JOIN chats AS one ON one.id = p.chat_id
        WHERE p.user_id = %(caller)s
            AND p.chat_id = %(chat_id)s
            AND p.left_at IS NULL
            AND NOT one.is_deleted
    ) AS c
"""
    + JOINS
    + users.BLOCK
)

SELECT_PARTICIPANT: LiteralString = """
    SELECT
        p.role,
        p.joined_at,
        p.user_id,
"""

# Nothing for who is not in the chat; who is, sees at least themselves.
PARTICIPANTS = (
    SELECT_PARTICIPANT
    + users.SHOWN
    + """
    FROM chat_participants AS me
    JOIN chats AS c ON c.id = me.chat_id
    JOIN chat_participants AS p ON p.chat_id = me.chat_id
    LEFT JOIN users AS u ON u.id = p.user_id
"""
    + users.BLOCK
    + """
    WHERE me.chat_id = %(chat_id)s
        AND me.user_id = %(caller)s
        AND me.left_at IS NULL
        AND NOT c.is_deleted
        AND p.left_at IS NULL
    ORDER BY p.joined_at, p.user_id
"""
)

# Whether some of the read models that are used have events of the chat that others have not.
TORN: LiteralString = (
    PLACE
    + """
    SELECT
        high - low > %(max_apart)s OR EXISTS (
            SELECT
            FROM event_log AS e
            WHERE e.position > low
                AND e.position <= high
                AND e.data ->> 'chat_id' = %(chat_id)s::text
        ) AS is_torn
    FROM place
"""
)

Role = Literal["owner", "admin", "member"]


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """`peer` is the other of a direct chat, and null in a group."""

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
    peer: User | None


class Chats(msgspec.Struct, frozen=True):
    items: list[Chat]
    next_cursor: str | None


class Participant(msgspec.Struct, frozen=True, kw_only=True):
    user: User
    role: Role
    joined_at: Time


class Participants(msgspec.Struct, frozen=True):
    items: list[Participant]


async def chats(call: Call, snapshot: Snapshot) -> Chats:
    limit = call.inbound.whole("limit", default=DEFAULT_LIMIT, low=1, high=MAX_LIMIT)
    return await _page(call.caller.user_id, read_cursor(call), limit, snapshot)


async def first_chats(caller: str, limit: int, snapshot: Snapshot) -> Chats:
    return await _page(caller, FIRST_PAGE, limit, snapshot)


async def whole_chat(call: Call, snapshot: Snapshot) -> Chat:
    found = await chat(call, snapshot)
    await _refuse_torn(str(found.id), USED, snapshot)
    return found


async def chat(call: Call, snapshot: Snapshot) -> Chat:
    arguments = {"caller": call.caller.user_id, "chat_id": call.inbound.id("chat_id")}
    rows = await snapshot.rows(ONE, arguments)
    if not rows:
        raise NotFound("there is no such chat")
    return (await _with_last_messages(rows, call.caller.user_id, snapshot))[0]


async def whole_participants(call: Call, snapshot: Snapshot) -> Participants:
    found = await participants(call, snapshot)
    await _refuse_torn(call.inbound.id("chat_id"), USED_OF_PARTICIPANTS, snapshot)
    return found


async def participants(call: Call, snapshot: Snapshot) -> Participants:
    arguments = {"caller": call.caller.user_id, "chat_id": call.inbound.id("chat_id")}
    rows = await snapshot.rows(PARTICIPANTS, arguments)
    if not rows:
        raise NotFound("there is no such chat")
    return Participants(
        [Participant(user=user_of(row, row["joined_at"], snapshot), **row) for row in rows]
    )


async def _refuse_torn(chat_id: str, used: tuple[str, ...], snapshot: Snapshot) -> None:
    arguments = {"chat_id": chat_id, "used": list(used), "max_apart": MAX_APART}
    row = await snapshot.row(TORN, arguments)
    if row is None or row["is_torn"]:
        raise Torn("the read models have the chat at different positions")


async def _page(caller: str, after: Cursor, limit: int, snapshot: Snapshot) -> Chats:
    """Two statements, however many chats there are."""
    arguments: dict[str, Any] = {
        "caller": caller,
        "before": after.before,
        "before_id": after.before_id,
        "limit": limit + 1,
    }
    rows = await snapshot.rows(MINE, arguments)
    items = await _with_last_messages(rows[:limit], caller, snapshot)
    return Chats(items, _next(items[-1]) if len(rows) > limit else None)


async def _with_last_messages(
    rows: list[dict[str, Any]], caller: str, snapshot: Snapshot
) -> list[Chat]:
    last_ids = [row["last_message_id"] for row in rows if row["last_message_id"] is not None]
    found = await messages_by_id(last_ids, caller, snapshot)
    return [_chat(row, found.get(row.pop("last_message_id")), snapshot) for row in rows]


def _chat(row: dict[str, Any], last_message: Message | None, snapshot: Snapshot) -> Chat:
    avatar_url = shown_avatar(row.pop("avatar_url"), row["id"], snapshot.objects)
    peer = _peer(row, snapshot)
    return Chat(last_message=last_message, avatar_url=avatar_url, peer=peer, **row)


def _peer(row: dict[str, Any], snapshot: Snapshot) -> User | None:
    found = row["user_id"] is not None
    user = user_of(row, row["created_at"], snapshot)
    return user if found else None


def _next(last: Chat) -> str:
    return write_cursor(Cursor(last.last_message_at or last.created_at, last.id))


CHAT_ID = id_parameter("chat_id", "A chat that the caller is in.")
LIMIT = whole_parameter("limit", f"Default {DEFAULT_LIMIT}.", low=1, high=MAX_LIMIT)
USED = (*messages.USED, "contacts", "unread")
USED_OF_PARTICIPANTS = ("chats", "contacts", "users")

CHAT = Query("/v1/chats/{chat_id:str}", "chat", "A chat", chat, USED, Chat, (CHAT_ID,))
PARTICIPANTS_OF_CHAT = Query(
    "/v1/chats/{chat_id:str}/participants",
    "participants",
    "Who is in a chat",
    participants,
    USED_OF_PARTICIPANTS,
    Participants,
    (CHAT_ID,),
)

OPERATIONS: tuple[Operation, ...] = (
    operation(
        Query("/v1/chats", "chats", "The caller's chats", chats, USED, Chats, (LIMIT, CURSOR), ())
    ),
    operation(CHAT._replace(find=whole_chat), partial(answer_whole_or, CHAT)),
    operation(
        PARTICIPANTS_OF_CHAT._replace(find=whole_participants),
        partial(answer_whole_or, PARTICIPANTS_OF_CHAT),
    ),
)
