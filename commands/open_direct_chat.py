"""open-direct-chat: the one chat of two contacts, opened once and for ever.

One that is there is answered whatever became of the contact: its history stays readable.
"""

from typing import Annotated

from commands.command import Answer, Command, Context, Decision, View
from commands.members import known_users
from commands.sending import check_contacts, check_not_blocked
from commands.slugs import RESERVED_PREFIX, slug_claim
from domain.chat import DirectChatOpened
from domain.ids import UUID_TEXT, ChatId, UserId, direct_chat_id
from domain.refusals import Invalid


class OpenDirectChat(Command, frozen=True, kw_only=True):
    user_id: Annotated[UserId, UUID_TEXT]


class Opened(Answer, frozen=True, kw_only=True):
    """`created`: it was not there before."""

    chat_id: ChatId
    created: bool


def decide(open_: OpenDirectChat, context: Context, view: View) -> Decision:
    actor, other = context.actor, open_.user_id
    if actor == other:
        raise Invalid("a direct chat is with somebody else", field="user_id")
    chat_id = direct_chat_id(actor, other)
    if view.chat(chat_id).exists:
        return Decision([], Opened(chat_id=chat_id, created=False))
    known_users(view, [actor, other])
    contact = view.contact(actor, other)
    # In this order, so that no stranger hears of a block.
    check_contacts(contact)
    check_not_blocked(contact, actor, other)
    pair = sorted((actor, other))
    opened = DirectChatOpened(
        chat_id=chat_id, by=actor, user_ids=pair, slug=RESERVED_PREFIX + "-".join(pair)
    )
    claim = slug_claim(opened.slug, chat_id)
    return Decision([opened], Opened(chat_id=chat_id, created=True), claims=(claim,))
