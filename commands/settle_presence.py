"""settle-presence: makes what others see of a user what the open connections say.

No client sends it: a gateway does, in the user's name, when their first connection opens and
when the last one is gone. What the user has set by `set-status` stays while one is open.
"""

from commands.command import Command, Context, Decision, View
from domain.user import Status, StatusChanged


class SettlePresence(Command, frozen=True, kw_only=True):
    is_connected: bool


def decide(settle: SettlePresence, context: Context, view: View) -> Decision:
    user = view.user(context.actor)
    if not user.is_active or (user.status != "offline") is settle.is_connected:
        return Decision([])
    status: Status = "online" if settle.is_connected else "offline"
    return Decision([StatusChanged(user_id=context.actor, status=status)])
