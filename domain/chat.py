"""A chat: its participants, roles and metadata, folded from the stream `chat-ID`.

The version of this stream is the membership version: sending a message guards it without
writing to it, so no message of a removed member can land after the removal.
Rules: data-model.md, entities 3 and 4; contract.md, "Group rights".
"""

from typing import ClassVar, Literal, assert_never

import msgspec

from domain.event import Event, Place
from domain.ids import ChatId, StreamId, UserId, chat_stream

MAX_PARTICIPANTS = 300

Role = Literal["owner", "admin", "member"]
AssignedRole = Literal["admin", "member"]


class ChatEvent(Event, frozen=True, kw_only=True):
    chat_id: ChatId

    @property
    def stream(self) -> StreamId:
        return chat_stream(self.chat_id)


class DirectChatOpened(ChatEvent, frozen=True, kw_only=True):
    """`user_ids` are the two, sorted; one of them (`by`) opened it."""

    type: ClassVar[str] = "direct_chat_opened"
    by: UserId
    user_ids: list[UserId]
    slug: str


class GroupCreated(ChatEvent, frozen=True, kw_only=True):
    """`member_ids` are the others, in the order given; the owner is a participant too."""

    type: ClassVar[str] = "group_created"
    owner_id: UserId
    member_ids: list[UserId]
    name: str
    slug: str
    avatar_url: str | None = None


class GroupUpdated(ChatEvent, frozen=True, kw_only=True):
    """The group's metadata as it is from now on."""

    type: ClassVar[str] = "group_updated"
    by: UserId
    name: str
    slug: str
    avatar_url: str | None


class GroupDeleted(ChatEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "group_deleted"
    by: UserId


class MembersAdded(ChatEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "members_added"
    by: UserId
    user_ids: list[UserId]


class MemberRemoved(ChatEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "member_removed"
    by: UserId
    user_id: UserId


class MemberLeft(ChatEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "member_left"
    user_id: UserId


class OwnershipTransferred(ChatEvent, frozen=True, kw_only=True):
    """The former owner, if still a participant, is a member from now on."""

    type: ClassVar[str] = "ownership_transferred"
    from_id: UserId
    to_id: UserId


class RoleChanged(ChatEvent, frozen=True, kw_only=True):
    type: ClassVar[str] = "role_changed"
    by: UserId
    user_id: UserId
    role: AssignedRole


class Chat(msgspec.Struct, frozen=True):
    """`joined` keeps everybody who was ever in the chat, first joined first: a rejoining
    participant keeps the place in line for ownership, as the row keeps `joined_at`."""

    exists: bool = False
    position: int = 0
    is_direct: bool = False
    is_deleted: bool = False
    name: str = ""
    slug: str = ""
    avatar_url: str | None = None
    owner_id: UserId | None = None
    creation: GroupCreated | None = None
    roles: dict[UserId, Role] = {}
    joined: tuple[UserId, ...] = ()

    def is_open_to(self, user_id: UserId | None) -> bool:
        """Whether the user is an active participant of a chat that is not deleted."""
        return user_id in self.roles and not self.is_deleted

    def peer(self, user_id: UserId) -> UserId:
        """The other one of a direct chat."""
        return next(other for other in self.roles if other != user_id)

    def successor(self) -> UserId | None:
        """Who owns the group when its owner is gone: the first admin, else the longest member."""
        others = [user for user in self.joined if user in self.roles and user != self.owner_id]
        admins = [user for user in others if self.roles[user] == "admin"]
        return next(iter(admins or others), None)


def evolve(chat: Chat, event: Event, place: Place) -> Chat:
    match event:
        case DirectChatOpened():
            return _opened(event, place)
        case GroupCreated():
            return _created(event, place)
        case GroupUpdated():
            return msgspec.structs.replace(
                chat, name=event.name, slug=event.slug, avatar_url=event.avatar_url
            )
        case GroupDeleted():
            return msgspec.structs.replace(chat, is_deleted=True)
        case _:
            return _evolve_members(chat, event)


def _evolve_members(chat: Chat, event: Event) -> Chat:
    assert isinstance(
        event, MembersAdded | MemberRemoved | MemberLeft | RoleChanged | OwnershipTransferred
    )
    match event:
        case MembersAdded():
            return _added(chat, event.user_ids)
        case MemberRemoved() | MemberLeft():
            roles = {user: role for user, role in chat.roles.items() if user != event.user_id}
            return msgspec.structs.replace(chat, roles=roles)
        case RoleChanged():
            return msgspec.structs.replace(chat, roles={**chat.roles, event.user_id: event.role})
        case OwnershipTransferred():
            return _transferred(chat, event)
        case _:
            assert_never(event)


def _opened(event: DirectChatOpened, place: Place) -> Chat:
    roles: dict[UserId, Role] = dict.fromkeys(event.user_ids, "member")
    return Chat(
        exists=True,
        position=place.position,
        is_direct=True,
        slug=event.slug,
        roles=roles,
        joined=tuple(roles),
    )


def _created(event: GroupCreated, place: Place) -> Chat:
    roles: dict[UserId, Role] = {event.owner_id: "owner"}
    roles.update(dict.fromkeys(event.member_ids, "member"))
    return Chat(
        exists=True,
        position=place.position,
        name=event.name,
        slug=event.slug,
        avatar_url=event.avatar_url,
        owner_id=event.owner_id,
        creation=event,
        roles=roles,
        joined=tuple(roles),
    )


def _added(chat: Chat, user_ids: list[UserId]) -> Chat:
    roles: dict[UserId, Role] = {**chat.roles, **dict.fromkeys(user_ids, "member")}
    newcomers = tuple(user for user in user_ids if user not in set(chat.joined))
    return msgspec.structs.replace(chat, roles=roles, joined=chat.joined + newcomers)


def _transferred(chat: Chat, event: OwnershipTransferred) -> Chat:
    roles: dict[UserId, Role] = {**chat.roles, event.to_id: "owner"}
    if event.from_id in roles:
        roles[event.from_id] = "member"
    return msgspec.structs.replace(chat, roles=roles, owner_id=event.to_id)
