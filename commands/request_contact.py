"""request-contact: asks the other; who was asked already, accepts by asking back."""

from typing import Annotated

from commands.command import Command, Context, Decision, View
from commands.contacts import changed, contact_with
from commands.sending import check_not_blocked
from domain.contact import ContactAccepted, ContactRequested, Standing
from domain.ids import UUID_TEXT, UserId


class RequestContact(Command, frozen=True, kw_only=True):
    user_id: Annotated[UserId, UUID_TEXT]


def decide(request: RequestContact, context: Context, view: View) -> Decision:
    actor, other = context.actor, request.user_id
    contact = contact_with(view, actor, other)
    check_not_blocked(contact, actor, other)
    standing = contact.standing
    if contact.is_accepted or standing.requested_by == actor:
        return Decision([])
    if standing.requested_by == other:
        return changed(
            ContactAccepted, context, other, Standing(other, standing.requested_at, context.now)
        )
    return changed(ContactRequested, context, other, Standing(actor, context.now))
