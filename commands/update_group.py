"""update-group: name, slug and avatar, by owner and admins; what is left out stays."""

from typing import Annotated

from msgspec import UNSET, UnsetType

from commands.command import (
    Answer,
    AvatarUrl,
    Command,
    Context,
    Decision,
    GroupName,
    Slug,
    View,
    open_group,
)
from commands.members import announce
from commands.slugs import check_slug, slug_claim
from domain.chat import GroupUpdated
from domain.event import Event
from domain.ids import UUID_TEXT, ChatId
from domain.refusals import Forbidden


class UpdateGroup(Command, frozen=True, kw_only=True):
    chat_id: Annotated[ChatId, UUID_TEXT]
    name: GroupName | UnsetType = UNSET
    slug: Slug | UnsetType = UNSET
    avatar_url: AvatarUrl | UnsetType | None = UNSET


class Updated(Answer, frozen=True, kw_only=True):
    slug: str


def decide(update: UpdateGroup, context: Context, view: View) -> Decision:
    chat = open_group(view, update.chat_id, context.actor)
    if chat.roles[context.actor] == "member":
        raise Forbidden("only the owner or an admin edits a group")
    updated = GroupUpdated(
        chat_id=update.chat_id,
        by=context.actor,
        name=chat.name if update.name is UNSET else update.name,
        slug=chat.slug if update.slug is UNSET else update.slug,
        avatar_url=chat.avatar_url if update.avatar_url is UNSET else update.avatar_url,
    )
    answer = Updated(slug=updated.slug)
    if (updated.name, updated.slug, updated.avatar_url) == (chat.name, chat.slug, chat.avatar_url):
        return Decision([], answer)
    events: list[Event] = [updated]
    if updated.name != chat.name:
        events.append(announce(context, 0, update.chat_id, "group_renamed", [], name=updated.name))
    if updated.slug.lower() == chat.slug.lower():
        return Decision(events, answer)
    check_slug(updated.slug)
    return Decision(
        events,
        answer,
        claims=(slug_claim(updated.slug, update.chat_id),),
        releases=(slug_claim(chat.slug, update.chat_id),),
    )
