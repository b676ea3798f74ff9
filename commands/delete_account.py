"""delete-account: the end of a user. From its event on nobody can add them or hear from them.

What follows from it, the shell sees to before it answers: leaving the groups and removing the
contacts (`settle_deletion`), destroying the keys, ending the sessions.
"""

from commands.command import Command, Context, Decision, Password, PasswordMatch, View
from domain.refusals import WrongPassword
from domain.user import AccountDeleted


class DeleteAccount(Command, frozen=True, kw_only=True):
    """With `erase_messages`, the content of the messages goes too."""

    password: Password
    erase_messages: bool = False


def decide(delete: DeleteAccount, context: Context, view: View) -> Decision:
    user = view.user(context.actor)
    if user.is_deleted:
        return Decision([])
    if not user.password_hash or not view.fact(PasswordMatch(delete.password, user.password_hash)):
        raise WrongPassword("this is not the account's password")
    deleted = AccountDeleted(user_id=context.actor, erase_messages=delete.erase_messages)
    return Decision([deleted])
