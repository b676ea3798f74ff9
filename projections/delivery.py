"""message_delivery: one row a message and recipient (data-model.md, entity 8).

Recipients are those who were in the chat at the message's position, without its sender. Marks
come as ranges of positions with the time at which each range was delivered and read, so that
a message sent, delivered and read within one batch is one row, written once.
"""

from collections.abc import Sequence
from datetime import datetime

from domain.chat import GroupDeleted
from domain.event import Recorded
from domain.message import MessageSent
from domain.receipt import DeliveriesRecorded, MessagesDelivered, MessagesRead
from projections.membership import FAN_OUT_EVENTS, Member, moves
from projections.projection import Projection, Row, Statement, Step

END_MEMBERS = """
    UPDATE delivery_members AS m
    SET left_position = r.left_position
    FROM json_to_recordset(%(ended)s) AS r (chat_id uuid, user_id uuid, left_position bigint)
    WHERE m.chat_id = r.chat_id AND m.user_id = r.user_id AND m.left_position IS NULL
"""

BEGIN_MEMBERS = """
    INSERT INTO delivery_members (chat_id, user_id, joined_position, left_position)
    SELECT chat_id, user_id, joined_position, left_position
    FROM json_to_recordset(%(begun)s) AS r (
        chat_id uuid,
        user_id uuid,
        joined_position bigint,
        left_position bigint
    )
"""

INSERT_DELIVERY = """
    INSERT INTO message_delivery (message_id, user_id, created_at, chat_id, position)
    SELECT r.message_id, m.user_id, r.created_at, r.chat_id, r.position
    FROM json_to_recordset(%(messages)s) AS r (
        message_id uuid,
        chat_id uuid,
        sender_id uuid,
        created_at timestamptz,
        position bigint
    )
    JOIN delivery_members AS m
        ON m.chat_id = r.chat_id
        AND m.joined_position < r.position
        AND (m.left_position IS NULL OR m.left_position > r.position)
        AND m.user_id <> r.sender_id
"""

INSERT_MARKED_DELIVERY = """
    WITH marks AS MATERIALIZED (
        SELECT chat_id, user_id, after, up_to, delivered_at, read_at
        FROM json_to_recordset(%(marks)s) AS r (
            chat_id uuid,
            user_id uuid,
            after bigint,
            up_to bigint,
            delivered_at timestamptz,
            read_at timestamptz
        )
    )
    INSERT INTO message_delivery (
        message_id, user_id, status, delivered_at, read_at, created_at, chat_id, position
    )
    SELECT
        r.message_id,
        m.user_id,
        CASE
            WHEN k.read_at IS NOT NULL THEN 'read'
            WHEN k.delivered_at IS NOT NULL THEN 'delivered'
            ELSE 'pending'
        END,
        k.delivered_at,
        k.read_at,
        r.created_at,
        r.chat_id,
        r.position
    FROM json_to_recordset(%(messages)s) AS r (
        message_id uuid,
        chat_id uuid,
        sender_id uuid,
        created_at timestamptz,
        position bigint
    )
    JOIN delivery_members AS m
        ON m.chat_id = r.chat_id
        AND m.joined_position < r.position
        AND (m.left_position IS NULL OR m.left_position > r.position)
        AND m.user_id <> r.sender_id
    LEFT JOIN marks AS k
        ON k.chat_id = r.chat_id
        AND k.user_id = m.user_id
        AND r.position > k.after
        AND r.position <= k.up_to
"""

# Rows of earlier batches; those of this one were written with their marks. What is delivered
# and never read may be many: a mark that only delivers does not look at it.
UPDATE_DELIVERY = """
    UPDATE message_delivery AS d
    SET status = CASE WHEN r.read_at IS NOT NULL THEN 'read' ELSE 'delivered' END,
        delivered_at = coalesce(d.delivered_at, r.delivered_at),
        read_at = r.read_at
    FROM json_to_recordset(%(marks)s) AS r (
        chat_id uuid,
        user_id uuid,
        after bigint,
        up_to bigint,
        delivered_at timestamptz,
        read_at timestamptz,
        batch_begin bigint
    )
    WHERE d.user_id = r.user_id
        AND d.chat_id = r.chat_id
        AND d.position > r.after
        AND d.position <= least(r.up_to, r.batch_begin)
        AND d.status <> 'read'
        AND d.status = ANY (
            CASE WHEN r.read_at IS NULL THEN ARRAY['pending'] ELSE ARRAY['pending', 'delivered'] END
        )
"""

FORGET_MEMBERS = """
    DELETE FROM delivery_members AS m
    USING json_to_recordset(%(ended)s) AS r (chat_id uuid, user_id uuid)
    WHERE m.chat_id = r.chat_id AND m.user_id = r.user_id AND m.left_position IS NOT NULL
"""


FORGET_CHATS = """
    DELETE FROM delivery_members AS m
    USING json_to_recordset(%(chats)s) AS r (chat_id uuid)
    WHERE m.chat_id = r.chat_id
"""


class _Spans:
    """Memberships that begin or end in a batch."""

    def __init__(self) -> None:
        self.ended: list[Row] = []
        self.begun: list[dict[str, object]] = []
        self.left: set[Member] = set()
        self._open: dict[Member, dict[str, object]] = {}

    def join(self, member: Member, position: int) -> None:
        row: dict[str, object] = {
            "chat_id": member[0],
            "user_id": member[1],
            "joined_position": position,
            "left_position": None,
        }
        self._open[member] = row
        self.begun.append(row)

    def leave(self, member: Member, position: int) -> None:
        self.left.add(member)
        begun = self._open.pop(member, None)
        if begun is not None:
            begun["left_position"] = position
        else:
            chat_id, user_id = member
            self.ended.append({"chat_id": chat_id, "user_id": user_id, "left_position": position})


Mark = tuple[int, int, datetime]  # delivered up to, read up to, when


def plan(events: Sequence[Recorded]) -> list[Step]:
    spans, messages, marks = _Spans(), [], dict[Member, list[Mark]]()
    ended: list[Row] = []
    for position, at, event in events:
        match event:
            case MessageSent():
                messages.append(_message(event, at, position))
            case MessagesDelivered() | MessagesRead():
                mark = (event.delivered_up_to, event.read_up_to, at)
                marks.setdefault((event.chat_id, event.user_id), []).append(mark)
            case DeliveriesRecorded():
                for of_user in event.marks:
                    # Nobody has what is yet to come, in this batch or in a later one.
                    mark = (min(of_user.up_to, position), 0, at)
                    marks.setdefault((event.chat_id, of_user.user_id), []).append(mark)
            case GroupDeleted():
                ended.append({"chat_id": event.chat_id})
            case _:
                for member, joins in moves(event):
                    (spans.join if joins else spans.leave)(member, position)
    ranges = [
        {**row, "batch_begin": events[0].position - 1}
        for member, of_member in marks.items()
        for row in _ranges(member, of_member)
    ]
    left = [{"chat_id": chat_id, "user_id": user_id} for chat_id, user_id in spans.left]
    insert = (
        Statement(INSERT_MARKED_DELIVERY, {"messages": messages, "marks": ranges})
        if ranges
        else Statement(INSERT_DELIVERY, {"messages": messages})
    )
    return [
        Statement(END_MEMBERS, {"ended": spans.ended}),
        Statement(BEGIN_MEMBERS, {"begun": spans.begun}),
        insert,
        Statement(UPDATE_DELIVERY, {"marks": ranges}),
        Statement(FORGET_MEMBERS, {"ended": left}),
        Statement(FORGET_CHATS, {"chats": ended}),
    ]


def _message(event: MessageSent, at: datetime, position: int) -> Row:
    return {
        "message_id": event.message_id,
        "chat_id": event.chat_id,
        "sender_id": event.sender_id,
        "created_at": at,
        "position": position,
    }


def _ranges(member: Member, marks: list[Mark]) -> list[Row]:
    """Disjoint ranges (after, up_to], each with the first times that cover it."""
    ends = sorted({up_to for delivered, read, _ in marks for up_to in (delivered, read) if up_to})
    rows: list[Row] = []
    after = 0
    for up_to in ends:
        rows.append(
            {
                "chat_id": member[0],
                "user_id": member[1],
                "after": after,
                "up_to": up_to,
                "delivered_at": next((at for delivered, _, at in marks if delivered >= up_to)),
                "read_at": next((at for _, read, at in marks if read >= up_to), None),
            }
        )
        after = up_to
    return rows


PROJECTION = Projection(
    name="delivery",
    handles=FAN_OUT_EVENTS | {DeliveriesRecorded},
    opens=frozenset(),
    plan=plan,
)
