"""What the commands about contacts share: the other one, and a changed standing as an event.

While anything is between two users, each claims the other, so that what is left of a deleted
account can be found.
"""

from commands.command import Claim, Context, Decision, View
from commands.members import known_users
from domain.contact import Contact, ContactEvent, Standing
from domain.ids import UserId, contact_stream
from domain.refusals import Invalid


def contact_with(view: View, actor: UserId, other: UserId) -> Contact:
    """What is between the two. Refuses oneself, and ids of nobody."""
    if actor == other:
        raise Invalid("a contact is somebody else", field="user_id")
    known_users(view, [actor, other])
    return view.contact(actor, other)


def changed(
    event: type[ContactEvent], context: Context, other: UserId, standing: Standing
) -> Decision:
    actor = context.actor
    holder = contact_stream(actor, other)
    claims = tuple(
        Claim("contact", f"{one}/{two}", holder) for one, two in ((actor, other), (other, actor))
    )
    happened = event(user_id=actor, contact_id=other, standing=standing)
    if standing == Standing():
        return Decision([happened], releases=claims)
    return Decision([happened], claims=claims)
