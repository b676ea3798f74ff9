"""unblock-contact: takes the caller's block away; what is between the two shows again."""

from typing import Annotated

import msgspec

from commands.command import Command, Context, Decision, View
from commands.contacts import changed, contact_with
from domain.contact import ContactUnblocked
from domain.ids import UUID_TEXT, UserId


class UnblockContact(Command, frozen=True, kw_only=True):
    user_id: Annotated[UserId, UUID_TEXT]


def decide(unblock: UnblockContact, context: Context, view: View) -> Decision:
    contact = contact_with(view, context.actor, unblock.user_id)
    if not contact.is_blocked_by(context.actor):
        return Decision([])
    blocked_at = {
        user: at for user, at in contact.standing.blocked_at.items() if user != context.actor
    }
    standing = msgspec.structs.replace(contact.standing, blocked_at=blocked_at)
    return changed(ContactUnblocked, context, unblock.user_id, standing)
