"""remove-reaction: takes one's own reaction back."""

from typing import Annotated

from commands.command import Command, Context, Decision, View
from commands.emoji import Emoji, check_emoji
from commands.messages import open_message
from domain.ids import UUID_TEXT, MessageId
from domain.message import ReactionRemoved


class RemoveReaction(Command, frozen=True, kw_only=True):
    message_id: Annotated[MessageId, UUID_TEXT]
    emoji: Emoji


def decide(remove: RemoveReaction, context: Context, view: View) -> Decision:
    check_emoji(remove.emoji)
    actor = context.actor
    message, _ = open_message(view, remove.message_id, actor)
    if (actor, remove.emoji) not in message.reactions:
        return Decision([])
    removed = ReactionRemoved(
        message_id=remove.message_id, chat_id=message.chat_id, user_id=actor, emoji=remove.emoji
    )
    return Decision([removed])
