"""Attachments: one by its id, and those of the messages of a page.

Addresses are signed at read, for an hour, and only for who may read the message; one that is not
sent yet is its sender's alone.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal
from uuid import UUID

import msgspec

from api.operations import Call, Operation
from api.queries.query import Query, Time, id_parameter, operation
from api.read_models import Snapshot
from domain.refusals import NotFound
from infra.objects import Objects

OF_MESSAGES = """
    SELECT
        a.message_id,
        a.id AS attachment_id,
        a.file_name,
        a.file_type,
        a.file_size,
        a.width,
        a.height,
        a.storage_key,
        a.medium_key,
        a.thumbnail_key
    FROM attachments AS a
    WHERE a.message_id = ANY (%(message_ids)s)
        AND a.ordinal IS NOT NULL
    ORDER BY a.message_id, a.ordinal
"""

ONE = """
    SELECT
        a.id AS attachment_id,
        a.file_name,
        a.file_type,
        a.file_size,
        a.width,
        a.height,
        a.storage_key,
        a.medium_key,
        a.thumbnail_key
    FROM attachments AS a
    JOIN chat_participants AS p ON p.chat_id = a.chat_id
    JOIN chats AS c ON c.id = a.chat_id
    WHERE a.id = %(attachment_id)s
        AND (a.ordinal IS NOT NULL OR a.sender_id = %(caller)s)
        AND p.user_id = %(caller)s
        AND p.left_at IS NULL
        AND NOT c.is_deleted
"""


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """`file_size` in bytes, `width` and `height` in pixels: of what `url` gives. The addresses
    are good until `expires_at`."""

    attachment_id: UUID
    file_name: str
    file_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    file_size: int
    width: int
    height: int
    url: str
    medium_url: str
    thumbnail_url: str
    expires_at: Time


async def attachment(call: Call, snapshot: Snapshot) -> Attachment:
    arguments = {
        "attachment_id": call.inbound.id("attachment_id"),
        "caller": call.caller.user_id,
    }
    row = await snapshot.row(ONE, arguments)
    if row is None:
        raise NotFound("there is no such attachment")
    return shown_attachment(row, snapshot.objects)


async def attachments_of(
    message_ids: Sequence[UUID], snapshot: Snapshot
) -> dict[UUID, list[Attachment]]:
    """In the order that they were sent in; whether the caller may see them was asked before."""
    found: dict[UUID, list[Attachment]] = defaultdict(list)
    if message_ids:
        for row in await snapshot.rows(OF_MESSAGES, {"message_ids": list(message_ids)}):
            found[row.pop("message_id")].append(shown_attachment(row, snapshot.objects))
    return found


def shown_attachment(row: dict[str, Any], objects: Objects) -> Attachment:
    """`row` has what is shown, and the keys of the three objects."""
    original, medium, thumbnail = (
        objects.signed(row.pop(name)) for name in ("storage_key", "medium_key", "thumbnail_key")
    )
    return Attachment(
        url=original.url,
        medium_url=medium.url,
        thumbnail_url=thumbnail.url,
        expires_at=min(original.expires_at, medium.expires_at, thumbnail.expires_at),
        **row,
    )


OPERATIONS: tuple[Operation, ...] = (
    operation(
        Query(
            "/v1/attachments/{attachment_id:str}",
            "attachment",
            "An attachment, with addresses signed anew",
            attachment,
            ("chats", "messages"),
            Attachment,
            (id_parameter("attachment_id", "An attachment of a chat that the caller is in."),),
        )
    ),
)
