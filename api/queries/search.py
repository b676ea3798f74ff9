"""Search in messages: the newest matches, best first, in the chats that the caller is in.

The newest `CANDIDATES` matches are a window: ranked as one, and paged through by rank. Then
comes the next older window, so each match is reached exactly once (but for those edited
meanwhile). A page may be shorter than asked for; only a null `next_cursor` is the end.

A window is looked for in blocks of positions, from the newest, larger ones where there is
little to be found: that bounds the work for a frequent word, and for a rare one there are few
blocks. Few chats are part of what the index intersects, many are checked for each match; where
they hold few messages altogether, these are looked at one by one instead. What is not done
within `WINDOW_SECONDS` is left to the next window, after `PAGE_SECONDS` already if there is
enough for the longest page; and a statement that would take all of `TIMEOUT_SECONDS` is ended:
503.

A query of nothing but stop words, signs or excluded words finds nothing; a blank one is 400.
"""

import math
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple
from uuid import UUID
from zlib import crc32

import msgspec
from msgspec import Meta
from psycopg.errors import QueryCanceled

from api.http import MAX_POSITION
from api.operations import Call, Operation, Parameter
from api.problems import ServiceUnavailable
from api.queries import search_text
from api.queries.messages import USED as USED_BY_MESSAGES
from api.queries.messages import Message, messages_by_id
from api.queries.query import Query, operation, whole_parameter
from api.read_models import Snapshot
from domain.refusals import Invalid, NotFound
from projections.search import BLOCK_BITS, block_lexeme, chat_lexeme

DEFAULT_LIMIT = 20
MAX_LIMIT = 50
MAX_QUERY_CHARACTERS = 200
MAX_CURSOR_CHARACTERS = 200
CANDIDATES = 200
# Where a window is looked for first, and how much more is looked at next at most.
FIRST_POSITIONS = 1 << BLOCK_BITS[0]
MAX_GROWTH = 16
MAX_BLOCKS = 32
# In an intersection with more, the index looks at each for every match.
FEW_CHATS = 12
# To look at each of so many messages takes some 4 ms.
FEW_MESSAGES = 10_000
PAGE_SECONDS = 0.005
WINDOW_SECONDS = 0.25
TIMEOUT_SECONDS = 2.0
MAX_HIGHLIGHTED_WORDS = 256

LIMIT_TIME = """
    SELECT set_config('statement_timeout', %(milliseconds)s, true)
"""

BEGIN = """
    SELECT
        coalesce(array_agg(p.chat_id), '{}')::text AS chats,
        count(*) AS chat_count,
        coalesce(sum(s.last_seq), 0) AS message_count,
        (SELECT position + 1 FROM projection_checkpoints WHERE projection = 'search') AS before,
        to_tsquery('pg_catalog.english', %(query)s)::text AS query,
        querytree(to_tsquery('pg_catalog.english', %(query)s)) AS indexed,
        tsvector_to_array(to_tsvector('pg_catalog.english', %(wanted)s)) AS lexemes
    FROM chat_participants AS p
    JOIN chats AS c ON c.id = p.chat_id
    LEFT JOIN chat_sequences AS s ON s.chat_id = p.chat_id
    WHERE p.user_id = %(caller)s
        AND p.left_at IS NULL
        AND NOT c.is_deleted
        AND (%(chat_id)s::uuid IS NULL OR p.chat_id = %(chat_id)s::uuid)
"""

# By the index of words. SELECT reads the query once, not for each row. IS TRUE keeps a condition
# from any index, and from becoming a join: no values are known when it is planned.
MATCHES = """
    SELECT
        message_id::text,
        position,
        ts_rank(words, (SELECT %(query)s::tsquery), 1) AS rank
    FROM (
        SELECT
            s.message_id,
            s.position,
            s.words
        FROM message_search AS s
        WHERE s.words @@ (SELECT %(scoped_query)s::tsquery)
            AND (s.position >= %(low)s AND s.position < %(before)s) IS TRUE
            AND (s.chat_id IN (SELECT unnest(%(chats)s::uuid[]))) IS TRUE
        ORDER BY s.position DESC
        LIMIT %(limit)s
    ) AS newest
    ORDER BY position DESC
"""

# By the messages of the caller's chats.
MATCHES_OF_CHATS = """
    SELECT
        message_id::text,
        position,
        ts_rank(words, (SELECT %(query)s::tsquery), 1) AS rank
    FROM (
        SELECT
            message_id,
            position,
            words
        FROM message_search
        WHERE chat_id = ANY (%(chats)s::uuid[])
            AND position >= %(low)s
            AND position < %(before)s
            AND (words @@ (SELECT %(query)s::tsquery)) IS TRUE
        ORDER BY position DESC
        LIMIT %(limit)s
    ) AS newest
    ORDER BY position DESC
"""

PLACES = """
    SELECT
        s.message_id,
        array(
            SELECT place
            FROM unnest(s.words) AS w, unnest(w.positions) AS place
            WHERE w.lexeme = ANY (%(lexemes)s::text[])
                OR left(w.lexeme, 1) = ANY (%(beginnings)s::text[])
            ORDER BY place
            LIMIT %(limit)s
        ) AS places
    FROM message_search AS s
    WHERE s.message_id = ANY (%(ids)s)
"""

ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Position = Annotated[int, Meta(ge=0, le=MAX_POSITION)]


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """`highlights` are ranges [start, end) of characters of the snippet, which is plain text."""

    message: Message
    rank: float
    snippet: str
    highlights: list[tuple[int, int]]


class FoundMessages(msgspec.Struct, frozen=True):
    items: list[Found]
    next_cursor: str | None


class Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The window [low, before) and the last match shown of it (none yet: position 0; no window
    yet: before 0). `has_older` if there is another; `search` is a digest of what is searched."""

    search: int
    before: Position = 0
    low: Position = 0
    has_older: bool = False
    rank: float = 0.0
    position: Position = 0

    @property
    def is_inside(self) -> bool:
        return self.position > 0


class Match(NamedTuple):
    message_id: str
    position: int
    rank: float


class Search(NamedTuple):
    """What is searched for, by whom and where; `chats` as PostgreSQL writes an array."""

    query: str
    lexemes: list[str]
    beginnings: list[str]
    caller: str
    chats: str
    chat_count: int
    message_count: int
    before: int

    @property
    def is_by_chat(self) -> bool:
        return self.chat_count > FEW_CHATS and self.message_count <= FEW_MESSAGES

    def messages_in(self, positions: int) -> int:
        """How many of the chats' are among so many, if they come evenly."""
        return self.message_count * positions // self.before

    def scoped(self, blocks: list[str]) -> str:
        """The query with what else the index can tell."""
        scopes = [blocks]
        if self.chat_count <= FEW_CHATS:
            scopes.append([chat_lexeme(chat_id) for chat_id in self.chats.strip("{}").split(",")])
        quoted = (" | ".join(f"'{lexeme}'" for lexeme in scope) for scope in scopes if scope)
        return " & ".join(f"({part})" for part in (self.query, *quoted))


class Blocks(NamedTuple):
    """Positions from `low` on, and the lexemes of the blocks that they are; none means all."""

    low: int
    lexemes: list[str]


async def search(call: Call, snapshot: Snapshot) -> FoundMessages:
    limit = call.inbound.whole("limit", default=DEFAULT_LIMIT, low=1, high=MAX_LIMIT)
    text, chat_id = _text(call), _chat_id(call)
    cursor = _read_cursor(call.inbound.parameters.get("cursor"), _digest(text, chat_id))
    try:
        snapshot.beforehand(LIMIT_TIME, {"milliseconds": f"{TIMEOUT_SECONDS * 1_000:.0f}"})
        wanted = await _search(search_text.parse(text), call.caller.user_id, chat_id, snapshot)
        if wanted is None:
            return FoundMessages([], None)
        matches, window = await _window(wanted, cursor, snapshot)
        page, next_cursor = _page(matches, window, cursor, limit)
        return FoundMessages(await _shown(page, wanted, snapshot), next_cursor)
    except QueryCanceled:
        raise ServiceUnavailable(
            f"the search took more than {TIMEOUT_SECONDS:g} s: rarer words, or one chat, take less"
        ) from None


async def _search(
    terms: search_text.Terms, caller: str, chat_id: str | None, snapshot: Snapshot
) -> Search | None:
    """None where there is nothing that could be found."""
    arguments = {
        "caller": caller,
        "chat_id": chat_id,
        "query": terms.query,
        "wanted": terms.wanted,
    }
    [row] = await snapshot.rows(BEGIN, arguments)
    if chat_id is not None and not row["chat_count"]:
        raise NotFound("there is no such chat")
    # "T": any message could match, as what is asked for is only what it may not hold.
    if row.pop("indexed") in ("", "T") or not row["chat_count"] or row["before"] is None:
        return None
    return Search(**row, beginnings=terms.beginnings, caller=caller)


async def _window(wanted: Search, cursor: Cursor, snapshot: Snapshot) -> tuple[list[Match], Cursor]:
    """The matches of the window, newest first, and where it is."""
    before = cursor.before or wanted.before
    # A window that was shown in part stays what it was.
    began = math.inf if cursor.is_inside else time.monotonic()
    found, low = await _matches(wanted, cursor.low, before, began, snapshot)
    if cursor.is_inside:
        return found, cursor
    inside = found[:CANDIDATES]
    if len(found) > len(inside):
        low = inside[-1].position
    return inside, Cursor(cursor.search, before, low, has_older=low > 0)


async def _matches(
    wanted: Search, low: int, before: int, began: float, snapshot: Snapshot
) -> tuple[list[Match], int]:
    """The newest in [low, before), and the position that was looked down to."""
    found: list[Match] = []
    # One more, to know whether there is an older window.
    most = CANDIDATES + 1
    size = before if wanted.is_by_chat else FIRST_POSITIONS
    is_frequent = False
    while before > low and len(found) < most:
        if found and time.monotonic() > began + _seconds_to_look(len(found)):
            break
        blocks = _blocks(before, size)
        arguments = {
            "query": wanted.query,
            "scoped_query": wanted.scoped(blocks.lexemes),
            "chats": wanted.chats,
            "low": max(low, blocks.low),
            "before": before,
            "limit": most - len(found),
        }
        is_by_chat = wanted.is_by_chat or (
            is_frequent and wanted.messages_in(before - blocks.low) <= FEW_MESSAGES
        )
        rows = await snapshot.rows(MATCHES_OF_CHATS if is_by_chat else MATCHES, arguments)
        found += [Match(**row) for row in rows]
        before = max(low, blocks.low)
        growth = 1 + (most - len(found)) // max(len(rows), 1)
        is_frequent = wanted.chat_count <= FEW_CHATS and growth < MAX_GROWTH
        size = max(FIRST_POSITIONS, size * min(MAX_GROWTH, growth))
    return found, before


def _seconds_to_look(found: int) -> float:
    return WINDOW_SECONDS if found < MAX_LIMIT else PAGE_SECONDS


def _blocks(before: int, size: int) -> Blocks:
    """Those of the `size` positions that end there, or all, where that is not many more."""
    bits = max((bits for bits in BLOCK_BITS if size >> bits), default=BLOCK_BITS[0])
    last = (before - 1) >> bits
    first = last - (size >> bits)
    if first <= 0:
        return Blocks(0, [])
    lexemes = [block_lexeme(number << bits, bits) for number in range(first, last + 1)]
    return Blocks(first << bits, lexemes) if len(lexemes) <= MAX_BLOCKS else Blocks(0, [])


def _page(
    matches: list[Match], window: Cursor, cursor: Cursor, limit: int
) -> tuple[list[Match], str | None]:
    ranked = sorted(matches, key=lambda match: (-match.rank, -match.position))
    if cursor.is_inside:
        last_shown = (-cursor.rank, -cursor.position)
        ranked = [one for one in ranked if (-one.rank, -one.position) > last_shown]
    page = ranked[:limit]
    if len(ranked) > limit:
        last = page[-1]
        inside = msgspec.structs.replace(window, rank=last.rank, position=last.position)
        return page, _write_cursor(inside)
    older = Cursor(window.search, before=window.low)
    return page, _write_cursor(older) if window.has_older else None


async def _shown(page: Sequence[Match], wanted: Search, snapshot: Snapshot) -> list[Found]:
    """Without those that were deleted since the words were written down."""
    ids = [UUID(match.message_id) for match in page]
    messages = await messages_by_id(ids, wanted.caller, snapshot)
    arguments: dict[str, Any] = {
        "ids": ids,
        "lexemes": wanted.lexemes,
        "beginnings": wanted.beginnings,
        "limit": MAX_HIGHLIGHTED_WORDS,
    }
    rows = await snapshot.rows(PLACES, arguments) if ids else []
    places = {row["message_id"]: row["places"] for row in rows}
    return [
        _found(messages[key], match.rank, places[key], wanted.beginnings)
        for key, match in zip(ids, page, strict=True)
        if key in messages and not messages[key].is_deleted
    ]


def _found(message: Message, rank: float, places: list[int], beginnings: list[str]) -> Found:
    part = search_text.snippet(message.content, places, beginnings)
    return Found(message=message, rank=rank, snippet=part.snippet, highlights=part.highlights)


def _text(call: Call) -> str:
    text = call.inbound.parameters.get("q", "")
    if not text.strip():
        raise Invalid("say what to search for", field="q")
    if len(text) > MAX_QUERY_CHARACTERS:
        raise Invalid(f"expected at most {MAX_QUERY_CHARACTERS} characters", field="q")
    return text


def _chat_id(call: Call) -> str | None:
    chat_id = call.inbound.parameters.get("chat_id")
    if chat_id is not None and not ID.fullmatch(chat_id):
        raise Invalid("ids are lowercase UUIDs", field="chat_id")
    return chat_id


def _digest(text: str, chat_id: str | None) -> int:
    return crc32(f"{chat_id} {text}".encode())


def _write_cursor(cursor: Cursor) -> str:
    return urlsafe_b64encode(msgspec.json.encode(cursor)).rstrip(b"=").decode()


def _read_cursor(text: str | None, digest: int) -> Cursor:
    if text is None:
        return Cursor(digest)
    try:
        padding = "=" * (-len(text) % 4)
        cursor = msgspec.json.decode(urlsafe_b64decode(text + padding), type=Cursor)
    except (ValueError, RecursionError):
        raise Invalid("this is no cursor that was given out", field="cursor") from None
    if cursor.search != digest:
        raise Invalid("the cursor is of another search", field="cursor")
    return cursor


PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "q",
        "query",
        {"type": "string", "minLength": 1, "maxLength": MAX_QUERY_CHARACTERS},
        'All of these words; "side by side", `-without`, `this or that`.',
    ),
    Parameter(
        "chat_id", "query", {"type": "string", "format": "uuid"}, "Only in this chat of the caller."
    ),
    whole_parameter("limit", f"Default {DEFAULT_LIMIT}.", low=1, high=MAX_LIMIT),
    Parameter(
        "cursor",
        "query",
        {"type": "string", "maxLength": MAX_CURSOR_CHARACTERS},
        "The `next_cursor` of a page before.",
    ),
)

OPERATIONS: tuple[Operation, ...] = (
    operation(
        Query(
            "/v1/search/messages",
            "search-messages",
            "Messages that hold certain words",
            search,
            (*USED_BY_MESSAGES, "search"),
            FoundMessages,
            PARAMETERS,
            (NotFound, ServiceUnavailable),
        )
    ),
)
