"""unblock-contact: takes the caller's block away; what is between the two shows again."""

import msgspec

from commands.command import Context, Decision, View
from commands.contacts import OfContact, changed, contact_with
from domain.contact import ContactUnblocked


class UnblockContact(OfContact, frozen=True, kw_only=True):
    pass


def decide(unblock: UnblockContact, context: Context, view: View) -> Decision:
    contact = contact_with(view, context.actor, unblock.user_id)
    if not contact.is_blocked_by(context.actor):
        return Decision([])
    blocked_at = {
        user: at for user, at in contact.standing.blocked_at.items() if user != context.actor
    }
    standing = msgspec.structs.replace(contact.standing, blocked_at=blocked_at)
    return changed(ContactUnblocked, context, unblock.user_id, standing)
