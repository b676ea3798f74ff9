"""contacts: two rows a pair, each one user's view of the other (data-model.md, entity 2).

A row shows what is between the two, or `blocked` where its user blocks the other. The last
event of a pair says all (`domain.contact.Standing`), so a pair's rows are written anew.
"""

from collections.abc import Iterator, Sequence

from domain.contact import CONTACT_EVENTS, ContactEvent, Standing
from domain.event import Recorded
from domain.ids import UserId
from projections.projection import Projection, Row, Statement, Step

DELETE_PAIRS = """
    DELETE FROM contacts AS c
    USING json_to_recordset(%(pairs)s) AS r (user_id uuid, contact_id uuid)
    WHERE c.user_id = r.user_id AND c.contact_id = r.contact_id
"""

INSERT_CONTACTS = """
    INSERT INTO contacts (user_id, contact_id, status, requested_by, created_at, accepted_at)
    SELECT user_id, contact_id, status, requested_by, created_at, accepted_at
    FROM json_to_recordset(%(contacts)s) AS r (
        user_id uuid,
        contact_id uuid,
        status text,
        requested_by uuid,
        created_at timestamptz,
        accepted_at timestamptz
    )
"""


def plan(events: Sequence[Recorded]) -> list[Step]:
    standings: dict[tuple[UserId, UserId], Standing] = {}
    for _, _, event in events:
        if isinstance(event, ContactEvent):
            one, other = sorted((event.user_id, event.contact_id))
            standings[one, other] = event.standing
    views = [view for pair in standings for view in (pair, pair[::-1])]
    pairs = [{"user_id": user_id, "contact_id": contact_id} for user_id, contact_id in views]
    rows = [row for pair, standing in standings.items() for row in _rows(*pair, standing)]
    return [
        Statement(DELETE_PAIRS, {"pairs": pairs}),
        Statement(INSERT_CONTACTS, {"contacts": rows}),
    ]


def _rows(one: UserId, other: UserId, standing: Standing) -> Iterator[Row]:
    for user_id, contact_id in ((one, other), (other, one)):
        blocked_at = standing.blocked_at.get(user_id)
        if blocked_at is None and standing.requested_by is None:
            continue
        between = "pending" if standing.accepted_at is None else "accepted"
        yield {
            "user_id": user_id,
            "contact_id": contact_id,
            "status": between if blocked_at is None else "blocked",
            "requested_by": standing.requested_by or user_id,
            "created_at": standing.requested_at or blocked_at,
            "accepted_at": standing.accepted_at,
        }


PROJECTION = Projection(name="contacts", handles=CONTACT_EVENTS, opens=frozenset(), plan=plan)
