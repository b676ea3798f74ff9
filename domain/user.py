"""A user: account, profile and password, folded from the stream `user-ID`.

Everything personal is sealed with the profile key, so that destroying the key erases it.
Rules: data-model.md, entity 1.
"""

import re
from typing import ClassVar, Literal, assert_never

import msgspec

from domain.event import Event, Place, ProfileText
from domain.ids import StreamId, UserId, user_stream

Status = Literal["online", "away", "offline"]

ERASED_USERNAME_PREFIX = "deleted_"


def erased_username(user_id: UserId) -> str:
    """What the row of a deleted account has for its username; nobody may register one such."""
    return ERASED_USERNAME_PREFIX + user_id.replace("-", "")


def is_erased_username(username: str) -> bool:
    return re.fullmatch(ERASED_USERNAME_PREFIX + "[0-9a-f]{32}", username) is not None


class UserEvent(Event, frozen=True, kw_only=True):
    user_id: UserId

    @property
    def stream(self) -> StreamId:
        return user_stream(self.user_id)


class UserRegistered(UserEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "user_registered"
    founds_keys: ClassVar[bool] = True
    username: ProfileText
    display_name: ProfileText
    password_hash: ProfileText


class ProfileUpdated(UserEvent, frozen=True, kw_only=True):
    """The profile as it is from now on; a null display name shows the username."""

    type: ClassVar[str] = "profile_updated"
    display_name: ProfileText
    avatar_url: ProfileText


class PasswordChanged(UserEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "password_changed"
    password_hash: ProfileText


class StatusChanged(UserEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "status_changed"
    status: Status


class AccountDeleted(UserEvent, frozen=True, kw_only=True):
    """The end of a user; what follows (leaving groups, destroying keys) follows from it."""

    type: ClassVar[str] = "account_deleted"
    erase_messages: bool


class User(msgspec.Struct, frozen=True):
    exists: bool = False
    position: int = 0
    registration: UserRegistered | None = None
    display_name: str | None = None
    avatar_url: str | None = None
    password_hash: str | None = None
    status: Status = "offline"
    is_deleted: bool = False

    @property
    def is_active(self) -> bool:
        return self.exists and not self.is_deleted


def evolve(user: User, event: Event, place: Place) -> User:
    match event:
        case StatusChanged():
            return msgspec.structs.replace(user, status=event.status)
        case AccountDeleted():
            return User(exists=True, position=user.position, is_deleted=True)
        case _:
            return _evolve_account(user, event, place)


def _evolve_account(user: User, event: Event, place: Place) -> User:
    assert isinstance(event, UserRegistered | ProfileUpdated | PasswordChanged), event
    match event:
        case UserRegistered():
            return User(
                exists=True,
                position=place.position,
                registration=event,
                display_name=event.display_name,
                password_hash=event.password_hash,
            )
        case ProfileUpdated():
            return msgspec.structs.replace(
                user, display_name=event.display_name, avatar_url=event.avatar_url
            )
        case PasswordChanged():
            return msgspec.structs.replace(user, password_hash=event.password_hash)
        case _:
            assert_never(event)
