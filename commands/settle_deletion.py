"""settle-deletion: takes a deleted account out of groups and contacts, some at a time.

No client sends it: the shell does, in the deleted user's name, until nothing is left. Done
twice, or by two at once, it is done once.
"""

from commands.command import Claim, Command, Context, Decision, View
from commands.contacts import changed
from commands.members import depart
from domain.contact import ContactRemoved, Standing
from domain.event import Event
from domain.ids import ChatId, UserId


class SettleDeletion(Command, frozen=True, kw_only=True):
    chat_ids: list[ChatId]
    contact_ids: list[UserId]


def decide(settle: SettleDeletion, context: Context, view: View) -> Decision:
    actor = context.actor
    events: list[Event] = []
    releases: list[Claim] = []
    if not view.user(actor).is_deleted:
        return Decision([])
    ids = 0
    for chat_id, chat in zip(settle.chat_ids, view.chats(settle.chat_ids), strict=True):
        if chat.is_open_to(actor) and not chat.is_direct:
            departure = depart(context, chat_id, chat, ids)
            events += departure.events
            releases += departure.releases
            ids += departure.ids
    contacts = view.contacts(actor, settle.contact_ids)
    for other, contact in zip(settle.contact_ids, contacts, strict=True):
        if contact.standing != Standing():
            removal = changed(ContactRemoved, context, other, Standing())
            events += removal.events
            releases += removal.releases
    return Decision(events, releases=tuple(releases))
