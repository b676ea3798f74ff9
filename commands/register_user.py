"""register-user: a new account (data-model.md, entity 1)."""

from typing import Annotated

from msgspec import Meta

from commands.command import (
    Answer,
    Claim,
    Command,
    Context,
    Decision,
    DisplayName,
    Password,
    PasswordHash,
    PasswordMatch,
    View,
)
from commands.passwords import check_password
from domain.ids import UUID_TEXT, UserId, user_stream
from domain.refusals import Conflict, Invalid
from domain.user import User, UserRegistered, is_erased_username

Username = Annotated[str, Meta(min_length=3, max_length=50, pattern=r"^[a-zA-Z0-9_]{3,50}$(?!\n)")]


class RegisterUser(Command, frozen=True, kw_only=True):
    username: Username
    password: Password
    display_name: DisplayName | None = None
    user_id: Annotated[UserId, UUID_TEXT] | None = None


class Registered(Answer, frozen=True, kw_only=True):
    user_id: UserId


def decide(register: RegisterUser, context: Context, view: View) -> Decision:
    check_password(register.password, field="password")
    if is_erased_username(register.username):
        raise Invalid("such usernames are what deleted accounts are shown by", field="username")
    user_id = register.user_id or UserId(context.id(0))
    user = view.new_user(user_id)
    if user.exists:
        return _again(register, user_id, user, view)
    registered = UserRegistered(
        user_id=user_id,
        username=register.username,
        display_name=_display_name(register),
        password_hash=view.fact(PasswordHash(register.password)),
    )
    claim = Claim("username", register.username, user_stream(user_id))
    return Decision([registered], Registered(user_id=user_id), claims=(claim,))


def _display_name(register: RegisterUser) -> str:
    return register.display_name or register.username


def _again(register: RegisterUser, user_id: UserId, user: User, view: View) -> Decision:
    """The same registration sent again answers as at first (contract.md, section 2)."""
    first = user.registration
    if (
        first is None
        or (first.username, first.display_name) != (register.username, _display_name(register))
        or not first.password_hash
        or not view.fact(PasswordMatch(register.password, first.password_hash))
    ):
        raise Conflict("this user_id is taken")
    return Decision([], Registered(user_id=user_id), repeats=user.position)
