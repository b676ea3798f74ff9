"""unread_messages and unread_counts: what each user has not read, by chat (data-model.md,
entity 9).

A row is there while its message is unread by an active participant. Leaving a chat takes its
rows away, as do the deletion of the message, of the group and of the account. A row that comes
and goes within one batch is never written. The counter beside them makes counting O(1) and
always equals the rows.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import LiteralString

from domain.chat import GroupDeleted
from domain.event import Event, Recorded
from domain.ids import ChatId
from domain.message import MessageDeleted, MessageSent
from domain.receipt import MessagesRead
from domain.user import AccountDeleted
from projections.membership import FAN_OUT_EVENTS, Member, moves
from projections.projection import Projection, Row, Statement, Step

END_MEMBERS = """
    WITH gone AS (
        SELECT chat_id, user_id
        FROM json_to_recordset(%(left)s) AS r (chat_id uuid, user_id uuid)
    ),
    members AS (
        DELETE FROM unread_members AS m
        USING gone AS g
        WHERE m.chat_id = g.chat_id AND m.user_id = g.user_id
    ),
    counts AS (
        DELETE FROM unread_counts AS c
        USING gone AS g
        WHERE c.user_id = g.user_id AND c.chat_id = g.chat_id
    )
    DELETE FROM unread_messages AS u
    USING gone AS g
    WHERE u.user_id = g.user_id AND u.chat_id = g.chat_id
"""

END_CHATS = """
    WITH gone AS (
        DELETE FROM unread_members AS m
        USING json_to_recordset(%(chats)s) AS r (chat_id uuid)
        WHERE m.chat_id = r.chat_id
        RETURNING m.chat_id, m.user_id
    ),
    counts AS (
        DELETE FROM unread_counts AS c
        USING gone AS g
        WHERE c.user_id = g.user_id AND c.chat_id = g.chat_id
    )
    DELETE FROM unread_messages AS u
    USING gone AS g
    WHERE u.user_id = g.user_id AND u.chat_id = g.chat_id
"""

BEGIN_MEMBERS = """
    INSERT INTO unread_members (chat_id, user_id, joined_position)
    SELECT chat_id, user_id, joined_position
    FROM json_to_recordset(%(joined)s) AS r (chat_id uuid, user_id uuid, joined_position bigint)
"""

# Follows what is `gone`: what is left is counted by it.
COUNT_GONE: LiteralString = """    less AS (
        SELECT user_id, chat_id, count(*) AS count
        FROM gone
        GROUP BY user_id, chat_id
    ),
    emptied AS (
        DELETE FROM unread_counts AS c
        USING less AS l
        WHERE c.user_id = l.user_id AND c.chat_id = l.chat_id AND c.count = l.count
    )
    UPDATE unread_counts AS c
    SET count = c.count - l.count
    FROM less AS l
    WHERE c.user_id = l.user_id AND c.chat_id = l.chat_id AND c.count > l.count
"""

# Everything up to the mark goes.
GONE_READ = """
    WITH gone AS (
        DELETE FROM unread_messages AS u
        USING json_to_recordset(%(marks)s) AS r (chat_id uuid, user_id uuid, up_to bigint)
        WHERE u.user_id = r.user_id AND u.chat_id = r.chat_id AND u.position <= r.up_to
        RETURNING u.user_id, u.chat_id
    ),
"""

DELETE_READ = GONE_READ + COUNT_GONE

GONE_DELETED = """
    WITH gone AS (
        DELETE FROM unread_messages AS u
        USING json_to_recordset(%(deleted)s) AS r (chat_id uuid, position bigint),
            unread_members AS m
        WHERE m.chat_id = r.chat_id
            AND u.user_id = m.user_id
            AND u.chat_id = r.chat_id
            AND u.position = r.position
        RETURNING u.user_id, u.chat_id
    ),
"""

DELETE_DELETED = GONE_DELETED + COUNT_GONE

# What comes later in groups that they have not been taken out of yet, stays until then.
GONE_OF_USERS = """
    WITH gone AS (
        DELETE FROM unread_messages AS u
        USING json_to_recordset(%(users)s) AS r (user_id uuid, position bigint)
        WHERE u.user_id = r.user_id AND u.position < r.position
        RETURNING u.user_id, u.chat_id
    ),
"""

DELETE_OF_USERS = GONE_OF_USERS + COUNT_GONE

INSERT_UNREAD = """
    WITH marks AS MATERIALIZED (
        SELECT chat_id, user_id, up_to
        FROM json_to_recordset(%(marks)s) AS r (chat_id uuid, user_id uuid, up_to bigint)
    ),
    added AS (
        INSERT INTO unread_messages (user_id, chat_id, message_id, created_at, position)
        SELECT m.user_id, r.chat_id, r.message_id, r.created_at, r.position
        FROM json_to_recordset(%(messages)s) AS r (
            message_id uuid,
            chat_id uuid,
            sender_id uuid,
            created_at timestamptz,
            position bigint
        )
        JOIN unread_members AS m
            ON m.chat_id = r.chat_id
            AND m.joined_position < r.position
            AND m.user_id <> r.sender_id
        LEFT JOIN marks AS k ON k.chat_id = r.chat_id AND k.user_id = m.user_id
        WHERE k.up_to IS NULL OR r.position > k.up_to
        RETURNING user_id, chat_id
    )
    INSERT INTO unread_counts AS c (user_id, chat_id, count)
    SELECT user_id, chat_id, count(*)
    FROM added
    GROUP BY user_id, chat_id
    ON CONFLICT (user_id, chat_id) DO UPDATE
    SET count = c.count + excluded.count
"""


class _Batch:
    """What a batch of events comes to."""

    def __init__(self) -> None:
        self.messages: dict[int, Row] = {}
        self.marks: dict[Member, int] = {}
        self.left: set[Member] = set()
        self.joined: dict[Member, int] = {}
        self.deleted: list[Row] = []
        self.ended: set[ChatId] = set()
        self.users: list[Row] = []

    def take(self, position: int, at: datetime, event: Event | None) -> None:
        match event:
            case MessageSent():
                self.messages[position] = _message(event, at, position)
            case MessagesRead():
                self.marks[event.chat_id, event.user_id] = event.read_up_to
            case MessageDeleted():
                # One of an earlier batch has rows; one of this batch gets none.
                if self.messages.pop(event.sent_position, None) is None:
                    row = {"chat_id": event.chat_id, "position": event.sent_position}
                    self.deleted.append(row)
            case GroupDeleted():
                self.ended.add(event.chat_id)
            case AccountDeleted():
                self.users.append({"user_id": event.user_id, "position": position})
            case _:
                for member, joins in moves(event):
                    self._move(member, joins, position)

    def _move(self, member: Member, joins: bool, position: int) -> None:
        if joins:
            self.joined[member] = position
        else:
            self.left.add(member)
            self.joined.pop(member, None)

    def end_chats(self) -> None:
        """Nothing comes after a group's deletion: what came before it leaves no trace."""
        self.joined = {key: at for key, at in self.joined.items() if key[0] not in self.ended}
        self.messages = {
            position: row
            for position, row in self.messages.items()
            if row["chat_id"] not in self.ended
        }


def plan(events: Sequence[Recorded]) -> list[Step]:
    batch = _Batch()
    for recorded in events:
        batch.take(*recorded)
    if batch.ended:
        batch.end_chats()
    marks = _rows(batch.marks, "up_to")
    return [
        Statement(END_CHATS, {"chats": [{"chat_id": chat_id} for chat_id in batch.ended]}),
        Statement(END_MEMBERS, {"left": [{"chat_id": c, "user_id": u} for c, u in batch.left]}),
        Statement(BEGIN_MEMBERS, {"joined": _rows(batch.joined, "joined_position")}),
        Statement(DELETE_DELETED, {"deleted": batch.deleted}),
        Statement(DELETE_READ, {"marks": marks}),
        Statement(INSERT_UNREAD, {"messages": list(batch.messages.values()), "marks": marks}),
        Statement(DELETE_OF_USERS, {"users": batch.users}),
    ]


def _message(event: MessageSent, at: datetime, position: int) -> Row:
    return {
        "message_id": event.message_id,
        "chat_id": event.chat_id,
        "sender_id": event.sender_id,
        "created_at": at,
        "position": position,
    }


def _rows(positions: dict[Member, int], name: str) -> list[Row]:
    return [
        {"chat_id": chat_id, "user_id": user_id, name: position}
        for (chat_id, user_id), position in positions.items()
    ]


PROJECTION = Projection(
    name="unread",
    handles=FAN_OUT_EVENTS | {MessageDeleted, AccountDeleted},
    opens=frozenset(),
    plan=plan,
)
