"""All that a client starts from, as of one position: it streams on from there, with no seam.

It is torn (`api.queries.whole`) where something concerns the caller that only some read models
have. The test errs on the safe side: what has no chat (profiles, contacts) concerns everybody.
"""

from typing import Any

import msgspec

from api.operations import Call, Operation
from api.queries import chats, contacts, unread
from api.queries.chats import Chat
from api.queries.contacts import Contact
from api.queries.query import Query, operation
from api.queries.unread import Unread
from api.queries.whole import MAX_APART, Torn, answer_whole
from api.read_models import Snapshot

MAX_CHATS = 200

PLACE = """
    WITH place AS MATERIALIZED (
        SELECT
            min(coalesce(c.position, 0)) AS low,
            max(coalesce(c.position, 0)) AS high
        FROM unnest(%(used)s::text[]) AS used (projection)
        LEFT JOIN projection_checkpoints AS c ON c.projection = used.projection
    )
    SELECT
        low AS position,
        high - low > %(max_apart)s OR EXISTS (
            SELECT
            FROM event_log AS e
            WHERE e.position > low
                AND e.position <= high
                AND (
                    e.data ->> 'chat_id' IS NULL
                    OR strpos(e.data::text, %(caller)s::text) > 0
                    OR EXISTS (
                        SELECT
                        FROM chat_participants AS p
                        WHERE p.chat_id = (e.data ->> 'chat_id')::uuid
                            AND p.user_id = %(caller)s::uuid
                    )
                )
        ) AS is_torn
    FROM place
"""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """`next_cursor` is that of `/v1/chats`, `contacts_cursor` that of `/v1/contacts`."""

    position: int
    chats: list[Chat]
    next_cursor: str | None
    unread: Unread
    contacts: list[Contact]
    contacts_cursor: str | None


async def state(call: Call, snapshot: Snapshot) -> State:
    caller = call.caller.user_id
    position = await _position(caller, snapshot)
    found_chats = await chats.first_chats(caller, MAX_CHATS, snapshot)
    found_contacts = await contacts.first_contacts(caller, snapshot)
    return State(
        position=position,
        chats=found_chats.items,
        next_cursor=found_chats.next_cursor,
        unread=await unread.unread_of(caller, snapshot),
        contacts=found_contacts.items,
        contacts_cursor=found_contacts.next_cursor,
    )


async def _position(caller: str, snapshot: Snapshot) -> int:
    arguments = {"caller": caller, "used": list(USED), "max_apart": MAX_APART}
    place: dict[str, Any] = await snapshot.row(PLACE, arguments) or {}
    if place["is_torn"]:
        raise Torn("the read models stay at different positions")
    position: int = place["position"]
    return position


USED = chats.USED

OPERATIONS: tuple[Operation, ...] = (
    operation(
        Query(
            "/v1/state",
            "state",
            f"What a client starts from: its {MAX_CHATS} chats last active, unread counts, contacts",
            state,
            USED,
            State,
            (),
            (),
        ),
        answer_whole,
    ),
)
