"""change-password: the shell ends the user's other sessions once it is durable."""

from commands.command import (
    Command,
    Context,
    Decision,
    Password,
    PasswordHash,
    PasswordMatch,
    View,
)
from commands.passwords import check_password
from domain.refusals import WrongPassword
from domain.user import PasswordChanged


class ChangePassword(Command, frozen=True, kw_only=True):
    current_password: Password
    new_password: Password


def decide(change: ChangePassword, context: Context, view: View) -> Decision:
    check_password(change.new_password, field="new_password")
    user = view.user(context.actor)
    if not user.password_hash or not view.fact(
        PasswordMatch(change.current_password, user.password_hash)
    ):
        raise WrongPassword("current_password is not the account's password")
    if change.new_password == change.current_password:
        return Decision([])
    changed = PasswordChanged(
        user_id=context.actor, password_hash=view.fact(PasswordHash(change.new_password))
    )
    return Decision([changed])
