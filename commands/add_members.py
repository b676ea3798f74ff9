"""add-members: by owner and admins; who is in already is left alone; at most 300 in all."""

from typing import Annotated

from msgspec import Meta

from commands.command import Answer, Command, Context, Decision, View, open_group
from commands.members import announce, check_addable, membership_claims
from domain.chat import MAX_PARTICIPANTS, MembersAdded
from domain.ids import UUID_TEXT, ChatId, UserId
from domain.refusals import Conflict, Forbidden


class AddMembers(Command, frozen=True, kw_only=True):
    chat_id: Annotated[ChatId, UUID_TEXT]
    user_ids: Annotated[
        list[Annotated[UserId, UUID_TEXT]], Meta(min_length=1, max_length=MAX_PARTICIPANTS)
    ]


class Added(Answer, frozen=True, kw_only=True):
    """`added`: the ids of those who were not in the group before, in the order given."""

    added: list[UserId]


def decide(add: AddMembers, context: Context, view: View) -> Decision:
    chat = open_group(view, add.chat_id, context.actor)
    if chat.roles[context.actor] == "member":
        raise Forbidden("only the owner or an admin adds members")
    newcomers = [user for user in dict.fromkeys(add.user_ids) if user not in chat.roles]
    if not newcomers:
        return Decision([], Added(added=[]))
    check_addable(view, context.actor, newcomers)
    if len(chat.roles) + len(newcomers) > MAX_PARTICIPANTS:
        raise Conflict(
            f"a group has at most {MAX_PARTICIPANTS} participants: it has {len(chat.roles)}, "
            f"{len(newcomers)} more were to join"
        )
    added = MembersAdded(chat_id=add.chat_id, by=context.actor, user_ids=newcomers)
    joined = announce(context, 0, add.chat_id, "members_added", newcomers)
    claims = membership_claims(add.chat_id, newcomers)
    return Decision([added, joined], Added(added=newcomers), claims=claims)
