"""create-group: the creator owns it; 1 to 299 others (data-model.md, entity 3)."""

import re
from typing import Annotated

from msgspec import Meta

from commands.command import Answer, AvatarUrl, Command, Context, Decision, GroupName, Slug, View
from commands.members import check_addable, known_users, membership_claims
from commands.slugs import check_slug, slug_claim
from domain.chat import MAX_PARTICIPANTS, Chat, GroupCreated
from domain.ids import UUID_TEXT, ChatId, UserId, is_direct_chat_id
from domain.refusals import Conflict, Invalid

# UUIDv7 begins with the time: its end is the random part.
RANDOM_SLUG_DIGITS = 16
RANDOM_SLUG = re.compile(f"group-[0-9a-f]{{{RANDOM_SLUG_DIGITS}}}")


class CreateGroup(Command, frozen=True, kw_only=True):
    name: GroupName
    member_ids: Annotated[
        list[Annotated[UserId, UUID_TEXT]], Meta(min_length=1, max_length=MAX_PARTICIPANTS - 1)
    ]
    slug: Slug | None = None
    avatar_url: AvatarUrl | None = None
    chat_id: Annotated[ChatId, UUID_TEXT] | None = None


class Created(Answer, frozen=True, kw_only=True):
    chat_id: ChatId
    slug: str


def decide(create: CreateGroup, context: Context, view: View) -> Decision:
    if create.slug is not None:
        check_slug(create.slug)
    others = list(dict.fromkeys(user for user in create.member_ids if user != context.actor))
    if not others:
        raise Invalid("a group needs at least one member besides its creator", field="member_ids")
    chat_id = create.chat_id or ChatId(context.id(0))
    if is_direct_chat_id(chat_id):
        raise Invalid("ids of version 8 are kept for direct chats", field="chat_id")
    chat = view.new_chat(chat_id)
    if chat.exists:
        return _again(create, others, chat, context)
    known_users(view, [context.actor, *others])
    check_addable(view, context.actor, others)
    slug = create.slug or f"group-{context.id(1).replace('-', '')[-RANDOM_SLUG_DIGITS:]}"
    created = GroupCreated(
        chat_id=chat_id,
        owner_id=context.actor,
        member_ids=others,
        name=create.name,
        slug=slug,
        avatar_url=create.avatar_url,
    )
    answer = Created(chat_id=chat_id, slug=slug)
    members = membership_claims(chat_id, [context.actor, *others])
    return Decision([created], answer, claims=(slug_claim(slug, chat_id), *members))


def _again(create: CreateGroup, others: list[UserId], chat: Chat, context: Context) -> Decision:
    """The same creation sent again answers as at first (contract.md, section 2)."""
    first = chat.creation
    if (
        first is None
        or first.owner_id != context.actor
        or set(first.member_ids) != set(others)
        or (first.name, first.avatar_url) != (create.name, create.avatar_url)
        or not _is_same_slug(create.slug, first.slug)
    ):
        raise Conflict("this chat_id is taken")
    return Decision([], Created(chat_id=first.chat_id, slug=first.slug), repeats=chat.position)


def _is_same_slug(again: str | None, first: str) -> bool:
    return RANDOM_SLUG.fullmatch(first) is not None if again is None else again == first
