"""`messenger explain unread USER CHAT`: what makes up a user's count of unread messages.

Everything is read in one snapshot: the counter, the row of each unread message, since when the
user is in the chat, and how far they have read by the log. The exit code is 1 if the counter is
not the number of rows, or a row is there that the read mark should have taken away.
"""

from typing import Any, NamedTuple
from uuid import UUID

from psycopg.rows import dict_row
from rich.console import Console
from rich.table import Table

from domain.ids import ChatId, UserId, receipt_stream
from infra import database
from infra.database import Connection
from infra.errors import MessengerError
from infra.settings import Settings

MAX_SHOWN = 1_000
# Wide enough for a row a line where it goes to a file.
PIPED_CHARACTERS = 200

BEGIN = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"

# Before the snapshot is taken, as all readers do (infra.tables.TAKEN_FIRST).
HOLD = """
    LOCK TABLE ONLY users, ONLY chat_participants, ONLY chat_sequences, ONLY unread_counts
    IN ACCESS SHARE MODE
"""

USER = """
    SELECT
        id::text AS id,
        username
    FROM users
    WHERE username = %(given)s OR id = %(id)s
"""

# A slug may look like an id: ids go first.
CHAT = """
    SELECT
        id::text AS id,
        type,
        name
    FROM chats
    WHERE id = %(id)s OR lower(slug) = lower(%(given)s) AND NOT is_deleted
    ORDER BY id = %(id)s DESC
    LIMIT 1
"""

FACTS = """
    SELECT
        (
            SELECT count
            FROM unread_counts
            WHERE user_id = %(user_id)s AND chat_id = %(chat_id)s
        ) AS counter,
        (
            SELECT count(*)
            FROM unread_messages
            WHERE user_id = %(user_id)s AND chat_id = %(chat_id)s
        ) AS rows,
        (
            SELECT joined_position
            FROM unread_members
            WHERE user_id = %(user_id)s AND chat_id = %(chat_id)s
        ) AS joined_position,
        (
            SELECT joined_at
            FROM chat_participants
            WHERE user_id = %(user_id)s AND chat_id = %(chat_id)s
        ) AS joined_at,
        (
            SELECT left_at
            FROM chat_participants
            WHERE user_id = %(user_id)s AND chat_id = %(chat_id)s
        ) AS left_at,
        (
            SELECT position
            FROM projection_checkpoints
            WHERE projection = 'unread'
        ) AS position,
        (
            SELECT position
            FROM log_head
        ) AS head
"""

MARK = """
    SELECT
        position,
        (data ->> 'read_up_to')::bigint AS read_up_to,
        recorded_at
    FROM event_log
    WHERE stream = %(stream)s AND position <= %(position)s
    ORDER BY stream_version DESC
    LIMIT 1
"""

READ_ALREADY = """
    SELECT count(*) AS rows
    FROM unread_messages
    WHERE user_id = %(user_id)s AND chat_id = %(chat_id)s AND position <= %(read_up_to)s
"""

UNREAD = """
    SELECT
        u.position,
        u.message_id,
        u.created_at,
        coalesce(s.username, m.sender_id::text, '') AS sender
    FROM unread_messages AS u
    LEFT JOIN message_places AS place ON place.id = u.message_id
    LEFT JOIN messages AS m ON m.id = place.id AND m.created_at = place.created_at
    LEFT JOIN users AS s ON s.id = m.sender_id
    WHERE u.user_id = %(user_id)s AND u.chat_id = %(chat_id)s
    ORDER BY u.position
    LIMIT %(limit)s
"""

Row = dict[str, Any]


class Explained(NamedTuple):
    """`mark` is the last receipt that the read model knows; it may say 0: delivered only."""

    user: Row
    chat: Row
    facts: Row
    mark: Row | None
    read_already: int
    unread: list[Row]

    @property
    def contradictions(self) -> list[str]:
        counter, rows = self.facts["counter"] or 0, self.facts["rows"]
        found = []
        if counter != rows:
            found.append(f"the counter says {counter}, but there are {rows} rows")
        if self.read_already:
            found.append(f"{self.read_already} rows are of messages that the read mark covers")
        return found


async def run(settings: Settings, user: str, chat: str) -> int:
    """The exit code."""
    async with (
        await database.connect(settings.database_url, name="explain") as connection,
        connection.transaction(),
    ):
        await connection.execute(BEGIN)
        await connection.execute(HOLD)
        explained = await explain(connection, user, chat)
    _show(explained)
    return 1 if explained.contradictions else 0


async def explain(connection: Connection, user: str, chat: str) -> Explained:
    """Raises MessengerError for a user or chat that is not there."""
    of_user = await _found(connection, USER, user, "user")
    of_chat = await _found(connection, CHAT, chat, "chat")
    ids = {"user_id": of_user["id"], "chat_id": of_chat["id"]}
    [facts] = await _rows(connection, FACTS, ids)
    stream = receipt_stream(ChatId(of_chat["id"]), UserId(of_user["id"]))
    marks = await _rows(connection, MARK, {"stream": stream, "position": facts["position"] or 0})
    mark = marks[0] if marks else None
    read_up_to = mark["read_up_to"] if mark else 0
    [already] = await _rows(connection, READ_ALREADY, {**ids, "read_up_to": read_up_to})
    unread = await _rows(connection, UNREAD, {**ids, "limit": MAX_SHOWN})
    return Explained(of_user, of_chat, facts, mark, already["rows"], unread)


async def _found(connection: Connection, statement: str, given: str, what: str) -> Row:
    rows = await _rows(connection, statement, {"given": given, "id": _id(given)})
    if not rows:
        raise MessengerError(f"there is no {what} {given!r}")
    return rows[0]


def _id(given: str) -> UUID | None:
    try:
        return UUID(given)
    except ValueError:
        return None


async def _rows(connection: Connection, statement: Any, arguments: Row) -> list[Row]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(statement, arguments)
        return await cursor.fetchall()


def _show(explained: Explained) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPED_CHARACTERS)
    if explained.unread:
        console.print(_table(explained))
    for line in (*_facts(explained), *explained.contradictions):
        console.print(line, markup=False)


def _table(explained: Explained) -> Table:
    table = Table("position", "message", "sender", "time")
    for row in explained.unread:
        table.add_row(
            str(row["position"]), str(row["message_id"]), row["sender"], _time(row["created_at"])
        )
    return table


def _facts(explained: Explained) -> list[str]:
    facts, chat = explained.facts, explained.chat
    beyond = facts["rows"] - len(explained.unread)
    name = f"{chat['type']} chat {chat['id']}" + (f" ({chat['name']})" if chat["name"] else "")
    return [
        *([f"and {beyond} more"] if beyond else []),
        f"{explained.user['username']} has {facts['counter'] or 0} unread in {name}",
        _membership(facts),
        _mark(explained.mark),
        f"the read model is at position {facts['position'] or 0} of {facts['head']}",
    ]


def _membership(facts: Row) -> str:
    if facts["joined_at"] is None:
        return "never was in the chat, as far as the read models know"
    if facts["left_at"] is not None:
        return f"left the chat at {_time(facts['left_at'])}"
    since = f"in the chat since {_time(facts['joined_at'])}"
    if facts["joined_position"] is None:
        return f"{since}, but not where unread messages are counted"
    return f"{since}; counted after position {facts['joined_position']}"


def _mark(mark: Row | None) -> str:
    if mark is None or not mark["read_up_to"]:
        return "has never marked anything in it read"
    at = _time(mark["recorded_at"])
    return f"has read up to position {mark['read_up_to']}; last receipt at {mark['position']}, {at}"


def _time(time: Any) -> str:
    text: str = time.isoformat(timespec="seconds").replace("+00:00", "Z")
    return text
