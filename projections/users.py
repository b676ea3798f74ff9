"""users: accounts and profiles, and when each user was last active (data-model.md, entity 1).

`last_seen` is the time of the user's last activity: sending a message, reading a chat, coming
online or going. Of a deleted account a row without anything personal stays, as its messages do.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from domain.event import Recorded
from domain.ids import UserId
from domain.message import MessageSent
from domain.receipt import MessagesRead
from domain.user import (
    AccountDeleted,
    PasswordChanged,
    ProfileUpdated,
    StatusChanged,
    UserRegistered,
    erased_username,
)
from projections.projection import Projection, Row, Statement, Step

# What is shown of a user whose profile key was destroyed.
ERASED_NAME = "[Deleted User]"
ERASED_PASSWORD = "!"

INSERT_USERS = """
    INSERT INTO users (
        id, username, password_hash, display_name, avatar_url, last_seen, created_at, updated_at
    )
    SELECT id, username, password_hash, display_name, avatar_url, last_seen, created_at, updated_at
    FROM json_to_recordset(%(users)s) AS r (
        id uuid,
        username text,
        password_hash text,
        display_name text,
        avatar_url text,
        last_seen timestamptz,
        created_at timestamptz,
        updated_at timestamptz
    )
"""

UPDATE_PROFILES = """
    UPDATE users AS u
    SET display_name = r.display_name,
        avatar_url = r.avatar_url,
        updated_at = r.updated_at
    FROM json_to_recordset(%(profiles)s) AS r (
        id uuid,
        display_name text,
        avatar_url text,
        updated_at timestamptz
    )
    WHERE u.id = r.id
"""

UPDATE_PASSWORDS = """
    UPDATE users AS u
    SET password_hash = r.password_hash,
        updated_at = r.updated_at
    FROM json_to_recordset(%(passwords)s) AS r (
        id uuid,
        password_hash text,
        updated_at timestamptz
    )
    WHERE u.id = r.id
"""

UPDATE_STATUS = """
    UPDATE users AS u
    SET status = r.status
    FROM json_to_recordset(%(statuses)s) AS r (id uuid, status text)
    WHERE u.id = r.id
"""

# After all else of a batch, as nothing comes after it.
UPDATE_DELETED = """
    UPDATE users AS u
    SET username = r.username,
        password_hash = r.password_hash,
        display_name = r.display_name,
        avatar_url = NULL,
        status = 'offline',
        last_seen = NULL,
        updated_at = r.updated_at
    FROM json_to_recordset(%(deleted)s) AS r (
        id uuid,
        username text,
        password_hash text,
        display_name text,
        updated_at timestamptz
    )
    WHERE u.id = r.id
"""

UPDATE_LAST_SEEN = """
    UPDATE users AS u
    SET last_seen = r.last_seen
    FROM json_to_recordset(%(seen)s) AS r (id uuid, last_seen timestamptz)
    WHERE u.id = r.id AND (u.last_seen IS NULL OR u.last_seen < r.last_seen)
"""


def plan(events: Sequence[Recorded]) -> list[Step]:
    registered: dict[UserId, dict[str, Any]] = {}
    profiles: dict[UserId, dict[str, Any]] = {}
    passwords: dict[UserId, dict[str, Any]] = {}
    statuses: dict[UserId, Row] = {}
    deleted: list[Row] = []
    seen: dict[UserId, datetime] = {}
    # Of any kind: the statements of the kinds are not run in the order of the events.
    changed_at: dict[UserId, datetime] = {}
    for _, at, event in events:
        match event:
            case MessageSent():
                _saw(seen, event.sender_id, at)
            case MessagesRead():
                _saw(seen, event.user_id, at)
            case StatusChanged():
                statuses[event.user_id] = {"id": event.user_id, "status": event.status}
                _saw(seen, event.user_id, at)
            case AccountDeleted():
                deleted.append(_deleted(event, at))
            case UserRegistered():
                registered[event.user_id] = _registered(event, at)
            case ProfileUpdated():
                changed_at[event.user_id] = at
                _change(registered, profiles, event.user_id, _profile(event))
            case PasswordChanged():
                changed_at[event.user_id] = at
                _change(registered, passwords, event.user_id, _password(event))
            case _:
                pass
    for rows in (registered, profiles, passwords):
        for user_id in rows.keys() & changed_at.keys():
            rows[user_id]["updated_at"] = changed_at[user_id]
    last_seen = [{"id": user_id, "last_seen": at} for user_id, at in seen.items()]
    return [
        Statement(INSERT_USERS, {"users": list(registered.values())}),
        Statement(UPDATE_PROFILES, {"profiles": list(profiles.values())}),
        Statement(UPDATE_PASSWORDS, {"passwords": list(passwords.values())}),
        Statement(UPDATE_STATUS, {"statuses": list(statuses.values())}),
        Statement(UPDATE_LAST_SEEN, {"seen": last_seen}),
        Statement(UPDATE_DELETED, {"deleted": deleted}),
    ]


def _saw(seen: dict[UserId, datetime], user_id: UserId, at: datetime) -> None:
    """Imported history may be older than what is known: last seen never goes back."""
    known = seen.get(user_id)
    if known is None or known < at:
        seen[user_id] = at


def _change(
    registered: dict[UserId, dict[str, Any]],
    changes: dict[UserId, dict[str, Any]],
    user_id: UserId,
    change: dict[str, Any],
) -> None:
    """Into the new row, if the user is of this batch; the last change of a kind stands."""
    if user_id in registered:
        registered[user_id].update(change)
    else:
        changes[user_id] = change


def _registered(event: UserRegistered, at: datetime) -> dict[str, Any]:
    return {
        "id": event.user_id,
        "username": event.username or erased_username(event.user_id),
        "password_hash": event.password_hash or ERASED_PASSWORD,
        "display_name": event.display_name or ERASED_NAME,
        "avatar_url": None,
        "last_seen": None,
        "created_at": at,
        "updated_at": at,
    }


def _deleted(event: AccountDeleted, at: datetime) -> Row:
    return {
        "id": event.user_id,
        "username": erased_username(event.user_id),
        "password_hash": ERASED_PASSWORD,
        "display_name": ERASED_NAME,
        "updated_at": at,
    }


def _profile(event: ProfileUpdated) -> dict[str, Any]:
    return {
        "id": event.user_id,
        "display_name": event.display_name or ERASED_NAME,
        "avatar_url": event.avatar_url,
    }


def _password(event: PasswordChanged) -> dict[str, Any]:
    return {
        "id": event.user_id,
        "password_hash": event.password_hash or ERASED_PASSWORD,
    }


PROJECTION = Projection(
    name="users",
    handles=frozenset(
        {
            UserRegistered,
            ProfileUpdated,
            PasswordChanged,
            StatusChanged,
            AccountDeleted,
            MessageSent,
            MessagesRead,
        }
    ),
    opens=frozenset({UserRegistered, ProfileUpdated, PasswordChanged}),
    plan=plan,
)
