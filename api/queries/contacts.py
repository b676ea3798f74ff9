"""Contacts: the caller's rows, as each stands for the caller; the latest first."""

from typing import Any, Literal, get_args
from uuid import UUID

import msgspec

from api.operations import Call, Operation, Parameter
from api.queries import users
from api.queries.paging import CURSOR, FIRST_PAGE, Cursor, read_cursor, write_cursor
from api.queries.query import Query, Time, operation, whole_parameter
from api.queries.users import User, user_of
from api.read_models import Snapshot
from domain.refusals import Invalid

# A client that knows nothing of pages gets them all, as long as it can be called one answer.
DEFAULT_LIMIT = 500
MAX_LIMIT = 500

SELECT_CONTACT = """
    SELECT
        mine.contact_id AS user_id,
        mine.status,
        mine.requested_by,
        mine.created_at,
        mine.accepted_at,
"""

# The page first, then the users of it.
MINE = (
    SELECT_CONTACT
    + users.SHOWN
    + """
    FROM (
        SELECT contact_id, status, requested_by, created_at, accepted_at
        FROM contacts
        WHERE user_id = %(caller)s
            AND status = ANY (%(statuses)s)
            AND (created_at, contact_id) < (%(before)s, %(before_id)s)
        ORDER BY created_at DESC, contact_id DESC
        LIMIT %(limit)s
    ) AS mine
    LEFT JOIN users AS u ON u.id = mine.contact_id
"""
    + users.BLOCK
    + """
    ORDER BY mine.created_at DESC, mine.contact_id DESC
"""
)

Status = Literal["pending", "accepted", "blocked"]
STATUSES: tuple[str, ...] = get_args(Status)


class Contact(msgspec.Struct, frozen=True, kw_only=True):
    user: User
    status: Status
    requested_by: UUID
    created_at: Time
    accepted_at: Time | None


class Contacts(msgspec.Struct, frozen=True):
    items: list[Contact]
    next_cursor: str | None


async def contacts(call: Call, snapshot: Snapshot) -> Contacts:
    limit = call.inbound.whole("limit", default=DEFAULT_LIMIT, low=1, high=MAX_LIMIT)
    return await _page(call.caller.user_id, _statuses(call), read_cursor(call), limit, snapshot)


async def first_contacts(caller: str, snapshot: Snapshot) -> Contacts:
    return await _page(caller, STATUSES, FIRST_PAGE, MAX_LIMIT, snapshot)


def _statuses(call: Call) -> tuple[str, ...]:
    status = call.inbound.parameters.get("status")
    if status is None:
        return STATUSES
    if status not in STATUSES:
        raise Invalid(f"expected one of {', '.join(STATUSES)}", field="status")
    return (status,)


async def _page(
    caller: str, statuses: tuple[str, ...], after: Cursor, limit: int, snapshot: Snapshot
) -> Contacts:
    arguments: dict[str, Any] = {
        "caller": caller,
        "statuses": list(statuses),
        "before": after.before,
        "before_id": after.before_id,
        "limit": limit + 1,
    }
    rows = await snapshot.rows(MINE, arguments)
    items = [Contact(user=user_of(row, row["created_at"], snapshot), **row) for row in rows[:limit]]
    return Contacts(items, _next(items[-1]) if len(rows) > limit else None)


def _next(last: Contact) -> str:
    return write_cursor(Cursor(last.created_at, last.user.id))


USED = users.USED
STATUS = Parameter(
    "status",
    "query",
    {"type": "string", "enum": list(STATUSES)},
    "Only those; all where it is not given.",
)
LIMIT = whole_parameter("limit", f"Default {DEFAULT_LIMIT}.", low=1, high=MAX_LIMIT)

OPERATIONS: tuple[Operation, ...] = (
    operation(
        Query(
            "/v1/contacts",
            "contacts",
            "The caller's contacts, requests and blocks, the latest first",
            contacts,
            USED,
            Contacts,
            (STATUS, LIMIT, CURSOR),
            (),
        )
    ),
)
