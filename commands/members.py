"""What several commands about members share: who can be added, how one departs, telling the
chat about it."""

from typing import NamedTuple

from commands.command import Claim, Context, View
from commands.slugs import slug_claim
from domain.chat import Chat, GroupDeleted, MemberLeft, OwnershipTransferred
from domain.event import Event
from domain.ids import ChatId, MessageId, UserId, chat_stream
from domain.message import SystemKind, SystemMessageSent
from domain.refusals import Blocked, NotFound


def known_users(view: View, user_ids: list[UserId]) -> None:
    """Refuses ids of nobody, and of deleted accounts."""
    for user_id, user in zip(user_ids, view.users(user_ids), strict=True):
        if not user.is_active:
            raise NotFound(f"there is no user {user_id}")


def check_addable(view: View, actor: UserId, newcomers: list[UserId]) -> None:
    """Who was blocked by somebody can not add them to a group (contract.md, "Block")."""
    known_users(view, newcomers)
    for newcomer, contact in zip(newcomers, view.contacts(actor, newcomers), strict=True):
        if contact.is_blocked_by(newcomer):
            raise Blocked(f"user {newcomer} has blocked you")


def membership_claims(chat_id: ChatId, user_ids: list[UserId]) -> tuple[Claim, ...]:
    """Of groups only: from a direct chat nobody departs."""
    holder = chat_stream(chat_id)
    return tuple(Claim("membership", f"{user_id}/{chat_id}", holder) for user_id in user_ids)


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


class Departure(NamedTuple):
    """`ids` is how many new ids it took from the context."""

    events: list[Event]
    releases: tuple[Claim, ...]
    heir: UserId | None
    ids: int


def depart(context: Context, chat_id: ChatId, chat: Chat, ordinal: int = 0) -> Departure:
    """The actor leaves: an owner hands the group to the first admin, else to the longest member
    (data-model.md, entity 4). When the last one leaves, the group is deleted."""
    user_id = context.actor
    left = MemberLeft(chat_id=chat_id, user_id=user_id)
    events: list[Event] = [left, announce(context, ordinal, chat_id, "member_left", [user_id])]
    releases = membership_claims(chat_id, [user_id])
    if user_id != chat.owner_id:
        return Departure(events, releases, None, 1)
    heir = chat.successor()
    if heir is None:
        events.append(GroupDeleted(chat_id=chat_id, by=user_id))
        return Departure(events, (*releases, slug_claim(chat.slug, chat_id)), None, 1)
    events.append(OwnershipTransferred(chat_id=chat_id, from_id=user_id, to_id=heir))
    events.append(announce(context, ordinal + 1, chat_id, "ownership_transferred", [heir]))
    return Departure(events, releases, heir, 2)
