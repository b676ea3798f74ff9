"""Who may say something in a chat they are in: everybody in a group, contacts in a direct chat.

Editing says something new and a reaction tells the other one something, so both take the same.
"""

from commands.command import View
from domain.chat import Chat
from domain.contact import Contact
from domain.ids import UserId
from domain.refusals import Blocked, NotContacts


def check_may_send(view: View, chat: Chat, actor: UserId) -> None:
    if not chat.is_direct:
        return
    peer = chat.peer(actor)
    # Their contact goes a moment after their account.
    if view.user(peer).is_deleted:
        raise NotContacts("this account is deleted")
    contact = view.contact(actor, peer)
    check_not_blocked(contact, actor, peer)
    check_contacts(contact)


def check_contacts(contact: Contact) -> None:
    if not contact.is_accepted:
        raise NotContacts("this takes an accepted contact")


def check_not_blocked(contact: Contact, actor: UserId, other: UserId) -> None:
    if contact.is_blocked_by(other):
        raise Blocked("this user has blocked you")
    if contact.is_blocked_by(actor):
        raise Blocked("you have blocked this user: unblock them first")
