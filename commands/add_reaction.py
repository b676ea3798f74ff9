"""add-reaction: each user up to ten different ones a message, none twice."""

from typing import Annotated

from commands.command import Command, Context, Decision, View
from commands.emoji import Emoji, check_emoji
from commands.messages import open_message
from commands.sending import check_may_send
from domain.ids import UUID_TEXT, MessageId
from domain.message import ReactionAdded
from domain.refusals import Conflict, Forbidden

MAX_REACTIONS_PER_USER = 10


class AddReaction(Command, frozen=True, kw_only=True):
    message_id: Annotated[MessageId, UUID_TEXT]
    emoji: Emoji


def decide(add: AddReaction, context: Context, view: View) -> Decision:
    check_emoji(add.emoji)
    actor = context.actor
    message, chat = open_message(view, add.message_id, actor)
    if message.sender_id is None:
        raise Forbidden("nobody reacts to what the group itself tells")
    if message.is_deleted:
        raise Conflict("the message is deleted")
    check_may_send(view, chat, actor)
    if (actor, add.emoji) in message.reactions:
        return Decision([])
    if sum(user == actor for user, _ in message.reactions) >= MAX_REACTIONS_PER_USER:
        raise Conflict(f"a user has at most {MAX_REACTIONS_PER_USER} reactions to a message")
    added = ReactionAdded(
        message_id=add.message_id, chat_id=message.chat_id, user_id=actor, emoji=add.emoji
    )
    return Decision([added])
