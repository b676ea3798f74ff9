"""unread_messages and unread_counts: what each user has not read, by chat (data-model.md,
entity 9).

A row is there while its message is unread by an active participant; leaving takes a chat's
rows away. A row that comes and goes within one batch is never written. The counter beside
them makes counting O(1) and always equals the rows.
"""

from collections.abc import Sequence

from domain.event import Recorded
from domain.message import MessageSent
from domain.receipt import MessagesRead
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

BEGIN_MEMBERS = """
    INSERT INTO unread_members (chat_id, user_id, joined_position)
    SELECT chat_id, user_id, joined_position
    FROM json_to_recordset(%(joined)s) AS r (chat_id uuid, user_id uuid, joined_position bigint)
"""

# Everything up to the mark goes, so what is left is counted by what went.
DELETE_READ = """
    WITH gone AS (
        DELETE FROM unread_messages AS u
        USING json_to_recordset(%(marks)s) AS r (chat_id uuid, user_id uuid, up_to bigint)
        WHERE u.user_id = r.user_id AND u.chat_id = r.chat_id AND u.position <= r.up_to
        RETURNING u.user_id, u.chat_id
    ),
    less AS (
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


def plan(events: Sequence[Recorded]) -> list[Step]:
    messages: list[Row] = []
    marks: dict[Member, int] = {}
    left: set[Member] = set()
    joined: dict[Member, int] = {}
    for position, at, event in events:
        match event:
            case MessageSent():
                messages.append(
                    {
                        "message_id": event.message_id,
                        "chat_id": event.chat_id,
                        "sender_id": event.sender_id,
                        "created_at": at,
                        "position": position,
                    }
                )
            case MessagesRead():
                marks[event.chat_id, event.user_id] = event.read_up_to
            case _:
                for member, joins in moves(event):
                    if joins:
                        joined[member] = position
                    else:
                        left.add(member)
                        joined.pop(member, None)
    mark_rows = _rows(marks, "up_to")
    return [
        Statement(END_MEMBERS, {"left": [{"chat_id": c, "user_id": u} for c, u in left]}),
        Statement(BEGIN_MEMBERS, {"joined": _rows(joined, "joined_position")}),
        Statement(DELETE_READ, {"marks": mark_rows}),
        Statement(INSERT_UNREAD, {"messages": messages, "marks": mark_rows}),
    ]


def _rows(positions: dict[Member, int], name: str) -> list[Row]:
    return [
        {"chat_id": chat_id, "user_id": user_id, name: position}
        for (chat_id, user_id), position in positions.items()
    ]


PROJECTION = Projection(name="unread", handles=FAN_OUT_EVENTS, opens=frozenset(), plan=plan)
