"""messages: what was said, numbered within each chat, partitioned by month (data-model.md,
entity 5).

`seq` counts a chat's messages from 1 in log order, system messages included. A system
message's content is a sentence without names; who did what to whom is in its metadata, for
clients to show with the names of the day.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from domain.event import Recorded
from domain.ids import ChatId
from domain.message import MessageSent, SystemKind, SystemMessageSent
from projections.projection import MonthlyPartitions, Projection, Row, Statement, Step, month_of

# What is shown of a message whose content key was destroyed.
ERASED_CONTENT = "[Deleted]"

SENTENCES: dict[SystemKind, str] = {
    "members_added": "joined the group",
    "member_removed": "was removed from the group",
    "member_left": "left the group",
    "group_renamed": "renamed the group",
    "ownership_transferred": "owns the group now",
}

INSERT_MESSAGES = """
    WITH counted AS (
        INSERT INTO chat_sequences AS s (chat_id, last_seq, last_message_id)
        SELECT chat_id, count, last_message_id
        FROM json_to_recordset(%(chats)s) AS r (chat_id uuid, count int, last_message_id uuid)
        ON CONFLICT (chat_id) DO UPDATE
        SET last_seq = s.last_seq + excluded.last_seq,
            last_message_id = excluded.last_message_id
        RETURNING chat_id, last_seq
    ),
    inserted AS (
        INSERT INTO messages (
            id, chat_id, sender_id, content, content_type, metadata, reply_to_id, created_at,
            seq, position
        )
        SELECT id, r.chat_id, sender_id, content, content_type, metadata, reply_to_id, created_at,
            c.last_seq - r.before_last, position
        FROM json_to_recordset(%(messages)s) AS r (
            id uuid,
            chat_id uuid,
            sender_id uuid,
            content text,
            content_type text,
            metadata jsonb,
            reply_to_id uuid,
            created_at timestamptz,
            before_last int,
            position bigint
        )
        JOIN counted AS c ON c.chat_id = r.chat_id
        RETURNING id, chat_id, created_at, seq
    )
    INSERT INTO message_places (id, chat_id, created_at, seq)
    SELECT id, chat_id, created_at, seq
    FROM inserted
"""


def plan(events: Sequence[Recorded]) -> list[Step]:
    rows = [
        _sent(event, at, position) if isinstance(event, MessageSent) else _told(event, at, position)
        for position, at, event in events
        if isinstance(event, MessageSent | SystemMessageSent)
    ]
    chats: dict[ChatId, dict[str, Any]] = {}
    counts: dict[ChatId, int] = {}
    # From the newest: a row knows how many messages of its chat come after it in the batch.
    for row in reversed(rows):
        chat_id = row["chat_id"]
        chats.setdefault(chat_id, {"chat_id": chat_id, "last_message_id": row["id"]})
        row["before_last"] = counts.get(chat_id, 0)
        counts[chat_id] = row["before_last"] + 1
    for chat_id, chat in chats.items():
        chat["count"] = counts[chat_id]
    months = frozenset(month_of(row["created_at"]) for row in rows)
    return [
        MonthlyPartitions("messages", months),
        Statement(INSERT_MESSAGES, {"messages": rows, "chats": list(chats.values())}),
    ]


def _sent(event: MessageSent, at: datetime, position: int) -> dict[str, Any]:
    metadata: Row = {"formatting": event.formatting} if event.formatting else {}
    return {
        "id": event.message_id,
        "chat_id": event.chat_id,
        "sender_id": event.sender_id,
        "content": ERASED_CONTENT if event.content is None else event.content,
        "content_type": "text",
        "metadata": metadata,
        "reply_to_id": event.reply_to_id,
        "created_at": at,
        "position": position,
    }


def _told(event: SystemMessageSent, at: datetime, position: int) -> dict[str, Any]:
    system: dict[str, Any] = {
        "kind": event.kind,
        "actor_id": event.actor_id,
        "user_ids": event.user_ids,
    }
    if event.name is not None:
        system["name"] = event.name
    return {
        "id": event.message_id,
        "chat_id": event.chat_id,
        "sender_id": None,
        "content": SENTENCES[event.kind],
        "content_type": "system",
        "metadata": {"system": system},
        "reply_to_id": None,
        "created_at": at,
        "position": position,
    }


PROJECTION = Projection(
    name="messages",
    handles=frozenset({MessageSent, SystemMessageSent}),
    opens=frozenset({MessageSent}),
    plan=plan,
)
