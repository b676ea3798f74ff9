"""messages: what was said, numbered within each chat, partitioned by month (data-model.md,
entity 5).

`seq` counts a chat's messages from 1 in log order, system messages included. A system
message's content is a sentence without names; who did what to whom is in its metadata, for
clients to show with the names of the day.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from domain.attachment import AttachmentUploaded
from domain.event import Event, Recorded
from domain.ids import ChatId, MessageId, UserId
from domain.message import (
    Formatting,
    MessageDeleted,
    MessageEdited,
    MessageSent,
    SystemKind,
    SystemMessageSent,
)
from domain.user import AccountDeleted
from projections import attachments
from projections.projection import MonthlyPartitions, Projection, Row, Statement, Step, month_of

# What is shown of a message that was deleted, or whose content key was destroyed.
DELETED_CONTENT = "[Deleted]"

# A message that nobody has touched yet.
NEW: Row = {"is_edited": False, "edited_at": None, "is_deleted": False, "deleted_at": None}

SENTENCES: dict[SystemKind, str] = {
    "members_added": "joined the group",
    "member_removed": "was removed from the group",
    "member_left": "left the group",
    "group_renamed": "renamed the group",
    "ownership_transferred": "owns the group now",
    "admin_appointed": "is an admin now",
    "admin_dismissed": "is no admin any more",
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
            is_edited, edited_at, is_deleted, deleted_at, seq, position
        )
        SELECT id, r.chat_id, sender_id, content, content_type, metadata, reply_to_id, created_at,
            is_edited, edited_at, is_deleted, deleted_at, c.last_seq - r.before_last, position
        FROM json_to_recordset(%(messages)s) AS r (
            id uuid,
            chat_id uuid,
            sender_id uuid,
            content text,
            content_type text,
            metadata jsonb,
            reply_to_id uuid,
            created_at timestamptz,
            is_edited boolean,
            edited_at timestamptz,
            is_deleted boolean,
            deleted_at timestamptz,
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


# Through the places, so that each is looked for in its own partition only. Attachments are as
# they were sent, whatever is said of them later.
UPDATE_EDITED = """
    UPDATE messages AS m
    SET content = r.content,
        metadata = m.metadata - 'formatting' || r.metadata,
        is_edited = true,
        edited_at = r.edited_at
    FROM json_to_recordset(%(edited)s) AS r (
        id uuid,
        content text,
        metadata jsonb,
        edited_at timestamptz
    )
    JOIN message_places AS p ON p.id = r.id
    WHERE m.id = p.id AND m.created_at = p.created_at
"""

UPDATE_DELETED = """
    UPDATE messages AS m
    SET content = r.content,
        metadata = '{}',
        is_deleted = true,
        deleted_at = r.deleted_at
    FROM json_to_recordset(%(deleted)s) AS r (id uuid, content text, deleted_at timestamptz)
    JOIN message_places AS p ON p.id = r.id
    WHERE m.id = p.id AND m.created_at = p.created_at
"""

UPDATE_ERASED = """
    UPDATE messages AS m
    SET content = r.content,
        metadata = '{}'
    FROM json_to_recordset(%(erased)s) AS r (sender_id uuid, content text)
    WHERE m.sender_id = r.sender_id
"""


class _Batch:
    """The rows that a batch of events folds to: new ones, and changes of older ones."""

    def __init__(self) -> None:
        self.rows: dict[MessageId, dict[str, Any]] = {}
        self.edited: dict[MessageId, Row] = {}
        self.deleted: dict[MessageId, Row] = {}
        self.erased: list[UserId] = []

    def take(self, position: int, at: datetime, event: Event | None) -> None:
        match event:
            case MessageSent():
                self.rows[event.message_id] = _sent(event, at, position)
            case SystemMessageSent():
                self.rows[event.message_id] = _told(event, at, position)
            case MessageEdited():
                change = worded(event.content, event.formatting) | {"edited_at": at}
                self._change(self.edited, event.message_id, change, "is_edited")
            case MessageDeleted():
                change = worded(None, {}) | {"deleted_at": at}
                self._change(self.deleted, event.message_id, change, "is_deleted")
            case AccountDeleted(erase_messages=True):
                self.erased.append(event.user_id)
            case _:
                pass

    def _change(
        self,
        changes: dict[MessageId, Row],
        message_id: MessageId,
        change: dict[str, Any],
        flag: str,
    ) -> None:
        """Into the new row, if the message is of this batch; the last edit stands."""
        row = self.rows.get(message_id)
        if row is not None:
            if flag == "is_edited" and "attachments" in row["metadata"]:
                attached = {"attachments": row["metadata"]["attachments"]}
                change = change | {"metadata": attached | change["metadata"]}
            row.update(change, **{flag: True})
        else:
            changes[message_id] = {"id": message_id, **change}

    def counted(self) -> tuple[list[Row], list[Row]]:
        """The new rows, and the chats that they add to."""
        rows = list(self.rows.values())
        chats: dict[ChatId, dict[str, Any]] = {}
        # From the newest: a row knows how many messages of its chat come after it in the batch.
        for row in reversed(rows):
            chat_id = row["chat_id"]
            chat = chats.setdefault(
                chat_id, {"chat_id": chat_id, "last_message_id": row["id"], "count": 0}
            )
            row["before_last"] = chat["count"]
            chat["count"] += 1
        return list[Row](rows), list[Row](chats.values())


def plan(events: Sequence[Recorded]) -> list[Step]:
    batch = _Batch()
    for recorded in events:
        batch.take(*recorded)
    rows, chats = batch.counted()
    months = frozenset(month_of(row["created_at"]) for row in rows)
    erased = [{"sender_id": sender_id, "content": DELETED_CONTENT} for sender_id in batch.erased]
    return [
        MonthlyPartitions("messages", months),
        Statement(INSERT_MESSAGES, {"messages": rows, "chats": chats}),
        Statement(UPDATE_EDITED, {"edited": list(batch.edited.values())}),
        Statement(UPDATE_DELETED, {"deleted": list(batch.deleted.values())}),
        Statement(UPDATE_ERASED, {"erased": erased}),
        *attachments.plan(events),
    ]


def said(event: MessageSent) -> dict[str, Any]:
    """Content and metadata of a message, as they are shown."""
    text = worded(event.content, event.formatting)
    if event.attachment_ids and event.content is not None:
        text["metadata"]["attachments"] = event.attachment_ids
    return text


def worded(content: str | None, formatting: Formatting) -> dict[str, Any]:
    """As `said`. Without its text, nothing is left that formatting could be of."""
    if content is None:
        return {"content": DELETED_CONTENT, "metadata": {}}
    return {"content": content, "metadata": {"formatting": formatting} if formatting else {}}


def _sent(event: MessageSent, at: datetime, position: int) -> dict[str, Any]:
    return said(event) | {
        "id": event.message_id,
        "chat_id": event.chat_id,
        "sender_id": event.sender_id,
        "content_type": "image" if event.attachment_ids else "text",
        "reply_to_id": event.reply_to_id,
        "created_at": at,
        "position": position,
        **NEW,
    }


def told(event: SystemMessageSent) -> dict[str, Any]:
    """Content and metadata of a system message, as they are shown."""
    system: dict[str, Any] = {
        "kind": event.kind,
        "actor_id": event.actor_id,
        "user_ids": event.user_ids,
    }
    if event.name is not None:
        system["name"] = event.name
    return {
        "content": SENTENCES[event.kind],
        "content_type": "system",
        "metadata": {"system": system},
    }


def _told(event: SystemMessageSent, at: datetime, position: int) -> dict[str, Any]:
    return told(event) | {
        "id": event.message_id,
        "chat_id": event.chat_id,
        "sender_id": None,
        "reply_to_id": None,
        "created_at": at,
        "position": position,
        **NEW,
    }


PROJECTION = Projection(
    name="messages",
    handles=attachments.HANDLES
    | {MessageSent, SystemMessageSent, MessageEdited, MessageDeleted, AccountDeleted},
    opens=frozenset({MessageSent, MessageEdited, AttachmentUploaded}),
    plan=plan,
)
