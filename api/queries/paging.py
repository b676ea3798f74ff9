"""Keyset paging by a time and an id: opaque cursors, later first."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from uuid import UUID

import msgspec

from api.operations import Call, Parameter
from api.queries.query import Time
from domain.refusals import Invalid

MAX_CURSOR_CHARACTERS = 200


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """The last of a page: the next page begins after it."""

    before: Time
    before_id: UUID


FIRST_PAGE = Cursor(datetime.fromisoformat("9999-12-31T00:00:00Z"), UUID(int=2**128 - 1))

CURSOR = Parameter(
    "cursor",
    "query",
    {"type": "string", "maxLength": MAX_CURSOR_CHARACTERS},
    "The `next_cursor` of a page before.",
)


def write_cursor(last: Cursor) -> str:
    return urlsafe_b64encode(msgspec.json.encode(last)).rstrip(b"=").decode()


def read_cursor(call: Call) -> Cursor:
    """Raises Invalid."""
    text = call.inbound.parameters.get("cursor")
    if text is None:
        return FIRST_PAGE
    try:
        padding = "=" * (-len(text) % 4)
        return msgspec.json.decode(urlsafe_b64decode(text + padding), type=Cursor)
    except (ValueError, RecursionError):
        raise Invalid("this is no cursor that was given out", field="cursor") from None
