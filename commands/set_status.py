"""set-status: what others see of one's presence."""

from commands.command import Command, Context, Decision, View
from commands.members import known_users
from domain.user import Status, StatusChanged


class SetStatus(Command, frozen=True, kw_only=True):
    status: Status


def decide(set_: SetStatus, context: Context, view: View) -> Decision:
    known_users(view, [context.actor])
    if view.user(context.actor).status == set_.status:
        return Decision([])
    return Decision([StatusChanged(user_id=context.actor, status=set_.status)])
