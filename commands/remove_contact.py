"""remove-contact: ends a contact, declines a request or withdraws one. Blocks stay."""

from commands.command import Context, Decision, View
from commands.contacts import OfContact, changed, contact_with
from domain.contact import ContactRemoved, Standing


class RemoveContact(OfContact, frozen=True, kw_only=True):
    pass


def decide(remove: RemoveContact, context: Context, view: View) -> Decision:
    contact = contact_with(view, context.actor, remove.user_id)
    if contact.standing.requested_by is None:
        return Decision([])
    standing = Standing(blocked_at=contact.standing.blocked_at)
    return changed(ContactRemoved, context, remove.user_id, standing)
