"""remove-contact: ends a contact, declines a request or withdraws one. Blocks stay."""

from typing import Annotated

from commands.command import Command, Context, Decision, View
from commands.contacts import changed, contact_with
from domain.contact import ContactRemoved, Standing
from domain.ids import UUID_TEXT, UserId


class RemoveContact(Command, frozen=True, kw_only=True):
    user_id: Annotated[UserId, UUID_TEXT]


def decide(remove: RemoveContact, context: Context, view: View) -> Decision:
    contact = contact_with(view, context.actor, remove.user_id)
    if contact.standing.requested_by is None:
        return Decision([])
    standing = Standing(blocked_at=contact.standing.blocked_at)
    return changed(ContactRemoved, context, remove.user_id, standing)
