"""Users: oneself, another by id, and search by prefix.

Who is blocked by somebody sees them as offline and never seen, wherever a user is shown;
nothing else tells them. `SHOWN`, `BLOCK` and `user_of` are for every query that shows users.
"""

from datetime import datetime
from typing import Any, Literal, LiteralString
from uuid import UUID

import msgspec

from api.operations import Call, Operation, Parameter
from api.queries.query import Query, Time, id_parameter, operation, whole_parameter
from api.queries.whole import Torn, answer_whole
from api.read_models import Snapshot
from domain.avatar import avatar_key
from domain.ids import UserId
from domain.refusals import Invalid, NotFound
from infra.objects import Objects

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
MAX_PREFIX_CHARACTERS = 100
LAST_CHARACTER = "\U0010ffff"

# Of the user `u` as the caller sees them, where `block` is joined.
SHOWN: LiteralString = """
        u.username AS user_username,
        u.display_name AS user_display_name,
        u.avatar_url AS user_avatar_url,
        CASE WHEN block.user_id IS NULL THEN u.status ELSE 'offline' END AS user_status,
        CASE WHEN block.user_id IS NULL THEN u.last_seen END AS user_last_seen,
        u.created_at AS user_created_at
"""

BLOCK: LiteralString = """
    LEFT JOIN contacts AS block
        ON block.user_id = u.id
        AND block.contact_id = %(caller)s
        AND block.status = 'blocked'
"""

SELECT_USER: LiteralString = """
    SELECT
        u.id AS user_id,
"""

ONE = (
    SELECT_USER
    + SHOWN
    + """
    FROM users AS u
"""
    + BLOCK
    + """
    WHERE u.id = %(user_id)s
"""
)

# As ranges by bytes, which an index serves whatever the prefix; LIKE needs to know it to plan.
# Each name's range is cut in the index's own order, so no prefix reads more than is shown. Twice
# as many of the second: most display names are the username, so as many may be there already.
# A deleted account is the only one that no password fits.
BY_PREFIX = (
    SELECT_USER
    + SHOWN
    + """
    FROM (
        SELECT DISTINCT ON (id) id, place, name
        FROM (
            (
                SELECT id, 1 AS place, lower(username) AS name
                FROM users
                WHERE lower(username) ~>=~ lower(%(low)s)
                    AND lower(username) ~<~ lower(%(high)s)
                    AND password_hash <> '!'
                ORDER BY lower(username) USING ~<~, id
                LIMIT %(limit)s
            )
            UNION ALL
            (
                SELECT id, 2 AS place, lower(display_name) AS name
                FROM users
                WHERE lower(display_name) ~>=~ lower(%(low)s)
                    AND lower(display_name) ~<~ lower(%(high)s)
                    AND password_hash <> '!'
                ORDER BY lower(display_name) USING ~<~, id
                LIMIT 2 * %(limit)s
            )
        ) AS named
        ORDER BY id, place
    ) AS found
    JOIN users AS u ON u.id = found.id
"""
    + BLOCK
    + """
    ORDER BY found.place, found.name USING ~<~, u.id
    LIMIT %(limit)s
"""
)


class User(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    username: str
    display_name: str | None
    avatar_url: str | None
    status: Literal["online", "offline", "away"]
    last_seen: Time | None
    created_at: Time


class Users(msgspec.Struct, frozen=True):
    items: list[User]


async def me(call: Call, snapshot: Snapshot) -> User:
    """Who has a token is there, if not yet in the read model."""
    try:
        return await _one(call.caller.user_id, call, snapshot)
    except NotFound:
        raise Torn("the read models have not heard of you yet") from None


async def user(call: Call, snapshot: Snapshot) -> User:
    return await _one(call.inbound.id("user_id"), call, snapshot)


async def search(call: Call, snapshot: Snapshot) -> Users:
    prefix = call.inbound.parameters.get("prefix", "")
    if len(prefix) > MAX_PREFIX_CHARACTERS:
        raise Invalid(f"expected at most {MAX_PREFIX_CHARACTERS} characters", field="prefix")
    arguments: dict[str, Any] = {
        "caller": call.caller.user_id,
        "low": prefix,
        "high": prefix + LAST_CHARACTER,
        "limit": call.inbound.whole("limit", default=DEFAULT_LIMIT, low=1, high=MAX_LIMIT),
    }
    return Users([_user(row, snapshot) for row in await snapshot.rows(BY_PREFIX, arguments)])


def user_of(row: dict[str, Any], known_since: datetime, snapshot: Snapshot) -> User:
    """Takes the user's columns out of the row.

    The users may be behind what names them: then `known_since` is all that is known.
    """
    user_id: UUID = row.pop("user_id")
    return User(
        id=user_id,
        username=row.pop("user_username") or "",
        display_name=row.pop("user_display_name"),
        avatar_url=shown_avatar(row.pop("user_avatar_url"), user_id, snapshot.objects),
        status=row.pop("user_status") or "offline",
        last_seen=row.pop("user_last_seen"),
        created_at=row.pop("user_created_at") or known_since,
    )


def shown_avatar(avatar_url: str | None, owner: UUID | str, objects: Objects) -> str | None:
    """Signed, where it is an object of ours; else as it was given."""
    key = avatar_key(avatar_url, UserId(str(owner))) if avatar_url else None
    return objects.signed(key).url if key else avatar_url


async def _one(user_id: str, call: Call, snapshot: Snapshot) -> User:
    arguments = {"user_id": user_id, "caller": call.caller.user_id}
    row = await snapshot.row(ONE, arguments)
    if row is None:
        raise NotFound("there is no such user")
    return _user(row, snapshot)


def _user(row: dict[str, Any], snapshot: Snapshot) -> User:
    return user_of(row, row["user_created_at"], snapshot)


# The contacts say who hides from whom.
USED = ("users", "contacts")
PREFIX = Parameter(
    "prefix",
    "query",
    {"type": "string", "maxLength": MAX_PREFIX_CHARACTERS},
    "Of the username or the display name, in any case; usernames come first.",
)
LIMIT = whole_parameter("limit", f"Default {DEFAULT_LIMIT}.", low=1, high=MAX_LIMIT)

OPERATIONS: tuple[Operation, ...] = (
    operation(Query("/v1/users/me", "me", "The caller", me, USED, User), answer_whole),
    operation(
        Query(
            "/v1/users/{user_id:str}",
            "user",
            "A user",
            user,
            USED,
            User,
            (id_parameter("user_id", "A user."),),
        )
    ),
    operation(
        Query(
            "/v1/users", "search-users", "Users by prefix", search, USED, Users, (PREFIX, LIMIT), ()
        )
    ),
)
