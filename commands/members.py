"""What several commands about members share: known users, and telling the chat about it."""

from commands.command import Context, View
from domain.ids import ChatId, MessageId, UserId
from domain.message import SystemKind, SystemMessageSent
from domain.refusals import NotFound


def known_users(view: View, user_ids: list[UserId]) -> None:
    """Refuses ids of nobody."""
    for user_id, user in zip(user_ids, view.users(user_ids), strict=True):
        if not user.exists:
            raise NotFound(f"there is no user {user_id}")


def announce(
    context: Context,
    ordinal: int,
    chat_id: ChatId,
    kind: SystemKind,
    user_ids: list[UserId],
    name: str | None = None,
) -> SystemMessageSent:
    """The system message that a change of the group brings (contract.md, "Rules beyond")."""
    return SystemMessageSent(
        message_id=MessageId(context.id(ordinal)),
        chat_id=chat_id,
        kind=kind,
        actor_id=context.actor,
        user_ids=user_ids,
        name=name,
    )
