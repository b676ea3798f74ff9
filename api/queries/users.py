"""Users: oneself, another by id, and search by prefix."""

from typing import Any, Literal
from uuid import UUID

import msgspec

from api.operations import Call, Operation, Parameter
from api.queries.query import Query, Time, id_parameter, operation, whole_parameter
from api.read_models import Snapshot
from domain.refusals import Invalid, NotFound

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
MAX_PREFIX_CHARACTERS = 100
LAST_CHARACTER = "\U0010ffff"

ONE = """
    SELECT
        id,
        username,
        display_name,
        avatar_url,
        status,
        last_seen,
        created_at
    FROM users
    WHERE id = %(user_id)s
"""

# As ranges by bytes, which an index serves whatever the prefix; LIKE needs to know it to plan.
BY_PREFIX = """
    SELECT
        id,
        username,
        display_name,
        avatar_url,
        status,
        last_seen,
        created_at
    FROM users
    WHERE lower(username) ~>=~ lower(%(low)s) AND lower(username) ~<~ lower(%(high)s)
        OR lower(display_name) ~>=~ lower(%(low)s) AND lower(display_name) ~<~ lower(%(high)s)
    ORDER BY lower(username), id
    LIMIT %(limit)s
"""


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
    return await _one(call.caller.user_id, snapshot)


async def user(call: Call, snapshot: Snapshot) -> User:
    return await _one(call.inbound.id("user_id"), snapshot)


async def search(call: Call, snapshot: Snapshot) -> Users:
    prefix = call.inbound.parameters.get("prefix", "")
    if len(prefix) > MAX_PREFIX_CHARACTERS:
        raise Invalid(f"expected at most {MAX_PREFIX_CHARACTERS} characters", field="prefix")
    limit = call.inbound.whole("limit", default=DEFAULT_LIMIT, low=1, high=MAX_LIMIT)
    arguments: dict[str, Any] = {"low": prefix, "high": prefix + LAST_CHARACTER, "limit": limit}
    return Users([User(**row) for row in await snapshot.rows(BY_PREFIX, arguments)])


async def _one(user_id: str, snapshot: Snapshot) -> User:
    row = await snapshot.row(ONE, {"user_id": user_id})
    if row is None:
        raise NotFound("there is no such user")
    return User(**row)


USED = ("users",)
PREFIX = Parameter(
    "prefix",
    "query",
    {"type": "string", "maxLength": MAX_PREFIX_CHARACTERS},
    "Of the username or the display name, in any case.",
)
LIMIT = whole_parameter("limit", f"Default {DEFAULT_LIMIT}.", low=1, high=MAX_LIMIT)

OPERATIONS: tuple[Operation, ...] = tuple(
    operation(query)
    for query in (
        Query("/v1/users/me", "me", "The caller", me, USED, User),
        Query(
            "/v1/users/{user_id:str}",
            "user",
            "A user",
            user,
            USED,
            User,
            (id_parameter("user_id", "A user."),),
        ),
        Query(
            "/v1/users", "search-users", "Users by prefix", search, USED, Users, (PREFIX, LIMIT), ()
        ),
    )
)
