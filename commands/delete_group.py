"""delete-group: by the owner; the chat is gone for everybody, its slug is free."""

from typing import Annotated

from commands.command import Command, Context, Decision, View, open_group
from commands.members import membership_claims
from commands.slugs import slug_claim
from domain.chat import GroupDeleted
from domain.ids import UUID_TEXT, ChatId
from domain.refusals import Forbidden


class DeleteGroup(Command, frozen=True, kw_only=True):
    chat_id: Annotated[ChatId, UUID_TEXT]


def decide(delete: DeleteGroup, context: Context, view: View) -> Decision:
    chat = open_group(view, delete.chat_id, context.actor)
    if context.actor != chat.owner_id:
        raise Forbidden("only the owner deletes a group")
    members = membership_claims(delete.chat_id, list(chat.roles))
    return Decision(
        [GroupDeleted(chat_id=delete.chat_id, by=context.actor)],
        releases=(slug_claim(chat.slug, delete.chat_id), *members),
    )
