"""block-contact: anybody, contact or not; what is between the two stays as it is below it."""

from typing import Annotated

import msgspec

from commands.command import Command, Context, Decision, View
from commands.contacts import changed, contact_with
from domain.contact import ContactBlocked
from domain.ids import UUID_TEXT, UserId


class BlockContact(Command, frozen=True, kw_only=True):
    user_id: Annotated[UserId, UUID_TEXT]


def decide(block: BlockContact, context: Context, view: View) -> Decision:
    contact = contact_with(view, context.actor, block.user_id)
    if contact.is_blocked_by(context.actor):
        return Decision([])
    blocked_at = {**contact.standing.blocked_at, context.actor: context.now}
    standing = msgspec.structs.replace(contact.standing, blocked_at=blocked_at)
    return changed(ContactBlocked, context, block.user_id, standing)
