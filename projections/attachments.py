"""attachments: the images of messages (data-model.md, entity 6).

Part of the projection of messages, so that a message is never shown without its images or these
without it. A row is there from the upload on; `ordinal`, its place in the message, comes when
the message is sent. A row goes with its message's deletion, with its sender's content key, and
where it was never sent.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from domain.attachment import AttachmentRemoved, AttachmentUploaded
from domain.event import Event, Recorded
from domain.ids import AttachmentId, MessageId, UserId
from domain.message import MessageDeleted, MessageSent
from domain.user import AccountDeleted
from projections.projection import Row, Statement

HANDLES: frozenset[type[Event]] = frozenset(
    {AttachmentUploaded, AttachmentRemoved, MessageSent, MessageDeleted, AccountDeleted}
)

# Of one whose sender's content key was destroyed, until its row goes too.
DELETED_NAME = "[Deleted]"

INSERT_ATTACHMENTS = """
    INSERT INTO attachments (
        id, message_id, chat_id, sender_id, file_name, file_type, file_size, storage_key,
        medium_key, thumbnail_key, url, thumbnail_url, width, height, created_at, ordinal
    )
    SELECT id, message_id, chat_id, sender_id, file_name, file_type, file_size, storage_key,
        medium_key, thumbnail_key, store || '/' || storage_key, store || '/' || thumbnail_key,
        width, height, created_at, ordinal
    FROM json_to_recordset(%(uploaded)s) AS r (
        id uuid,
        message_id uuid,
        chat_id uuid,
        sender_id uuid,
        file_name text,
        file_type text,
        file_size int,
        storage_key text,
        medium_key text,
        thumbnail_key text,
        store text,
        width int,
        height int,
        created_at timestamptz,
        ordinal smallint
    )
"""

UPDATE_SENT_ATTACHMENTS = """
    UPDATE attachments AS a
    SET ordinal = r.ordinal
    FROM json_to_recordset(%(sent)s) AS r (id uuid, ordinal smallint)
    WHERE a.id = r.id
"""

DELETE_ATTACHMENTS = """
    DELETE FROM attachments AS a
    USING json_to_recordset(%(removed)s) AS r (id uuid)
    WHERE a.id = r.id
"""

DELETE_ATTACHMENTS_OF_MESSAGES = """
    DELETE FROM attachments AS a
    USING json_to_recordset(%(messages)s) AS r (message_id uuid)
    WHERE a.message_id = r.message_id
"""

DELETE_ATTACHMENTS_OF_SENDERS = """
    DELETE FROM attachments AS a
    USING json_to_recordset(%(senders)s) AS r (sender_id uuid)
    WHERE a.sender_id = r.sender_id
"""


class _Batch:
    """What a batch of events adds; what it takes away is taken last, for nothing comes after."""

    def __init__(self) -> None:
        self.uploaded: dict[AttachmentId, dict[str, Any]] = {}
        self.sent: list[Row] = []
        self.removed: list[AttachmentId] = []
        self.messages: list[MessageId] = []
        self.senders: list[UserId] = []

    def take(self, at: datetime, event: Event | None) -> None:
        match event:
            case AttachmentUploaded():
                self.uploaded[event.attachment_id] = _row(event, at)
            case MessageSent():
                for ordinal, attachment_id in enumerate(event.attachment_ids):
                    self._send(attachment_id, ordinal)
            case AttachmentRemoved():
                self.removed.append(event.attachment_id)
            case MessageDeleted():
                self.messages.append(event.message_id)
            case AccountDeleted(erase_messages=True):
                self.senders.append(event.user_id)
            case _:
                pass

    def _send(self, attachment_id: AttachmentId, ordinal: int) -> None:
        if attachment_id in self.uploaded:
            self.uploaded[attachment_id]["ordinal"] = ordinal
        else:
            self.sent.append({"id": attachment_id, "ordinal": ordinal})


def plan(events: Sequence[Recorded]) -> list[Statement]:
    batch = _Batch()
    for recorded in events:
        batch.take(recorded.recorded_at, recorded.event)
    return [
        Statement(INSERT_ATTACHMENTS, {"uploaded": list(batch.uploaded.values())}),
        Statement(UPDATE_SENT_ATTACHMENTS, {"sent": batch.sent}),
        Statement(DELETE_ATTACHMENTS, {"removed": [{"id": one} for one in batch.removed]}),
        Statement(
            DELETE_ATTACHMENTS_OF_MESSAGES,
            {"messages": [{"message_id": one} for one in batch.messages]},
        ),
        Statement(
            DELETE_ATTACHMENTS_OF_SENDERS,
            {"senders": [{"sender_id": one} for one in batch.senders]},
        ),
    ]


def _row(event: AttachmentUploaded, at: datetime) -> dict[str, Any]:
    return {
        "id": event.attachment_id,
        "message_id": event.message_id,
        "chat_id": event.chat_id,
        "sender_id": event.sender_id,
        "file_name": DELETED_NAME if event.file_name is None else event.file_name,
        "file_type": event.file_type,
        "file_size": event.file_size,
        "storage_key": event.key("original"),
        "medium_key": event.key("medium"),
        "thumbnail_key": event.key("thumbnail"),
        "store": event.store,
        "width": event.width,
        "height": event.height,
        "created_at": at,
        "ordinal": None,
    }
