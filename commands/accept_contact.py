"""accept-contact: says yes to the other's request. To decline is to remove (remove-contact)."""

from typing import Annotated

from commands.command import Command, Context, Decision, View
from commands.contacts import changed, contact_with
from domain.contact import ContactAccepted, Standing
from domain.ids import UUID_TEXT, UserId
from domain.refusals import Blocked, Forbidden, NotFound


class AcceptContact(Command, frozen=True, kw_only=True):
    user_id: Annotated[UserId, UUID_TEXT]


def decide(accept: AcceptContact, context: Context, view: View) -> Decision:
    actor, other = context.actor, accept.user_id
    contact = contact_with(view, actor, other)
    standing = contact.standing
    if contact.is_blocked_by(actor):
        raise Blocked("you have blocked this user: unblock them first")
    if contact.is_accepted:
        return Decision([])
    if standing.requested_by is None:
        raise NotFound("there is no request of this user")
    if standing.requested_by == actor:
        raise Forbidden("it is for the other to accept your request")
    # A block by the other stays, and nothing tells of it.
    accepted = Standing(other, standing.requested_at, context.now, standing.blocked_at)
    return changed(ContactAccepted, context, other, accepted)
