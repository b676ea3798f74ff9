"""create-group, update-group, delete-group, add-members, remove-member, leave-group, change-role,
transfer-ownership.

Rules: data-model.md, entities 3 and 4; contract.md, "Rules beyond data-model.md".
"""

from typing import Any

import msgspec
import pytest

from commands.add_members import Added, AddMembers
from commands.change_role import ChangeRole
from commands.command import Answer, Claim, Command, Decision
from commands.create_group import Created, CreateGroup
from commands.delete_group import DeleteGroup
from commands.leave_group import LeaveGroup, Left
from commands.remove_member import RemoveMember
from commands.transfer_ownership import TransferOwnership
from commands.update_group import Updated, UpdateGroup
from domain.chat import (
    MAX_PARTICIPANTS,
    GroupCreated,
    GroupDeleted,
    GroupUpdated,
    MemberLeft,
    MemberRemoved,
    MembersAdded,
    OwnershipTransferred,
    RoleChanged,
)
from domain.ids import (
    MessageId,
    UserId,
    chat_stream,
    contact_stream,
    direct_chat_id,
    user_stream,
)
from domain.message import SystemKind, SystemMessageSent
from domain.refusals import Blocked, Conflict, Forbidden, Invalid, NotFound
from tests.commands.history import (
    ANNA,
    BEN,
    CARL,
    CHAT,
    DORA,
    NOBODY,
    OTHER_CHAT,
    History,
    contact,
    deleted,
    direct,
    given,
    group,
    new_id,
    people,
    user_id,
)


def told(
    kind: SystemKind,
    by: UserId,
    *user_ids: UserId,
    ordinal: int = 0,
    name: str | None = None,
) -> SystemMessageSent:
    return SystemMessageSent(
        message_id=MessageId(new_id(ordinal)),
        chat_id=CHAT,
        kind=kind,
        actor_id=by,
        user_ids=list(user_ids),
        name=name,
    )


def crowd(count: int) -> list[UserId]:
    return [user_id(number) for number in range(1_000, 1_000 + count)]


def friends(*members: UserId) -> History:
    """Anna owns a group with the members; Carl, Dora and Ben are registered anyhow."""
    others = [member for member in members if member not in (ANNA, BEN, CARL, DORA)]
    return given(*people(ANNA, BEN, CARL, DORA, *others), group(*members))


def with_admin(history: History, admin: UserId) -> History:
    return history.record(RoleChanged(chat_id=CHAT, by=ANNA, user_id=admin, role="admin"))


def members_of(*users: UserId) -> tuple[Claim, ...]:
    return tuple(Claim("membership", f"{user}/{CHAT}", chat_stream(CHAT)) for user in users)


def named(command: Command) -> str:
    return type(command).__name__


# create-group


def create(*member_ids: UserId, **fields: Any) -> CreateGroup:
    return CreateGroup(
        **{"name": "Friends", "member_ids": list(member_ids), "chat_id": CHAT} | fields
    )


def test_creating_a_group_makes_the_creator_its_owner() -> None:
    decision = given(*people(ANNA, BEN)).when(create(BEN, slug="Friends"), by=ANNA)
    assert decision == Decision(
        [
            GroupCreated(
                chat_id=CHAT, owner_id=ANNA, member_ids=[BEN], name="Friends", slug="Friends"
            )
        ],
        Created(chat_id=CHAT, slug="Friends"),
        claims=(Claim("slug", "friends", chat_stream(CHAT)), *members_of(ANNA, BEN)),
    )


def test_a_group_without_a_slug_gets_a_random_one() -> None:
    decision = given(*people(ANNA, BEN)).when(create(BEN, chat_id=None), by=ANNA)
    slug = f"group-{new_id(1).replace('-', '')[-16:]}"
    assert decision.answer == Created(chat_id=new_id(0), slug=slug)  # type: ignore[arg-type]
    assert [claim.value for claim in decision.claims if claim.scope == "slug"] == [slug]


def test_the_creator_and_repeated_members_count_once() -> None:
    decision = given(*people(ANNA, BEN, CARL)).when(create(BEN, ANNA, CARL, BEN), by=ANNA)
    [created] = decision.events
    assert isinstance(created, GroupCreated)
    assert created.member_ids == [BEN, CARL]


def test_nobody_is_a_group_alone() -> None:
    with pytest.raises(Invalid) as refusal:
        given(*people(ANNA)).when(create(ANNA), by=ANNA)
    assert refusal.value.field == "member_ids"


def test_a_group_is_made_of_known_users() -> None:
    with pytest.raises(NotFound):
        given(*people(ANNA, BEN)).when(create(BEN, NOBODY), by=ANNA)


def test_a_group_is_made_by_a_known_user() -> None:
    with pytest.raises(NotFound):
        given(*people(BEN)).when(create(BEN), by=NOBODY)


def test_a_group_begins_with_up_to_300() -> None:
    others = crowd(MAX_PARTICIPANTS - 1)
    history = given(*people(ANNA, *others))
    history.record(*history.when(create(*others), by=ANNA).events)
    assert len(history.state(chat_stream(CHAT)).roles) == MAX_PARTICIPANTS


@pytest.mark.parametrize("slug", ["direct-1", "Direct-abc"])
def test_slugs_of_direct_chats_are_reserved(slug: str) -> None:
    with pytest.raises(Invalid) as refusal:
        given(*people(ANNA, BEN)).when(create(BEN, slug=slug), by=ANNA)
    assert refusal.value.field == "slug"


@pytest.mark.parametrize("slug", [None, "friends"])
def test_creating_again_with_the_same_content_answers_as_at_first(slug: str | None) -> None:
    history = given(*people(ANNA, BEN, CARL))
    first = history.when(create(BEN, CARL, slug=slug), by=ANNA)
    again = history.record(*first.events).when(create(CARL, BEN, slug=slug), by=ANNA)
    assert again == Decision([], first.answer, repeats=4)


@pytest.mark.parametrize(
    ("again", "by"),
    [
        (create(BEN, name="Foes"), ANNA),
        (create(BEN, CARL), ANNA),
        (create(BEN, slug="foes"), ANNA),
        (create(BEN, slug=None), ANNA),
        (create(BEN, slug="Friends"), ANNA),
        (create(BEN, avatar_url="http://a.example"), ANNA),
        (create(ANNA), BEN),
    ],
)
def test_a_chat_id_is_not_used_twice_with_other_content(again: CreateGroup, by: UserId) -> None:
    with pytest.raises(Conflict):
        friends(BEN).when(again, by=by)


# update-group


def update(**fields: Any) -> UpdateGroup:
    return UpdateGroup(chat_id=CHAT, **fields)


def updated(name: str = "Friends", slug: str = "friends", by: UserId = ANNA) -> GroupUpdated:
    return GroupUpdated(chat_id=CHAT, by=by, name=name, slug=slug, avatar_url=None)


def test_renaming_a_group_tells_the_chat() -> None:
    assert friends(BEN).when(update(name="Foes"), by=ANNA) == Decision(
        [updated(name="Foes"), told("group_renamed", ANNA, name="Foes")], Updated(slug="friends")
    )


def test_a_picture_is_set_and_cleared_without_a_word() -> None:
    history = friends(BEN)
    [pictured] = history.when(update(avatar_url="http://a.example"), by=ANNA).events
    assert pictured == GroupUpdated(
        chat_id=CHAT, by=ANNA, name="Friends", slug="friends", avatar_url="http://a.example"
    )
    assert history.record(pictured).when(update(avatar_url=None), by=ANNA).events == [updated()]


def test_a_new_slug_is_claimed_and_the_old_one_given_back() -> None:
    stream = chat_stream(CHAT)
    assert friends(BEN).when(update(slug="Foes"), by=ANNA) == Decision(
        [updated(slug="Foes")],
        Updated(slug="Foes"),
        claims=(Claim("slug", "foes", stream),),
        releases=(Claim("slug", "friends", stream),),
    )


def test_a_slug_in_other_case_is_the_same_claim() -> None:
    decision = friends(BEN).when(update(slug="FRIENDS"), by=ANNA)
    assert decision == Decision([updated(slug="FRIENDS")], Updated(slug="FRIENDS"))


def test_a_group_can_not_take_the_slug_of_a_direct_chat() -> None:
    with pytest.raises(Invalid):
        friends(BEN).when(update(slug="direct-1"), by=ANNA)


@pytest.mark.parametrize(
    "fields", [{}, {"name": "Friends"}, {"slug": "friends"}, {"avatar_url": None}]
)
def test_a_group_that_stays_as_it_is_is_no_event(fields: dict[str, Any]) -> None:
    assert friends(BEN).when(update(**fields), by=ANNA) == Decision([], Updated(slug="friends"))


def test_an_admin_edits_a_group() -> None:
    decision = with_admin(friends(BEN), BEN).when(update(name="Foes"), by=BEN)
    assert decision.events[0] == updated(name="Foes", by=BEN)


# add-members


def add(*user_ids: UserId) -> AddMembers:
    return AddMembers(chat_id=CHAT, user_ids=list(user_ids))


def test_adding_members_tells_the_chat() -> None:
    assert friends(BEN).when(add(DORA, CARL), by=ANNA) == Decision(
        [
            MembersAdded(chat_id=CHAT, by=ANNA, user_ids=[DORA, CARL]),
            told("members_added", ANNA, DORA, CARL),
        ],
        Added(added=[DORA, CARL]),
        claims=members_of(DORA, CARL),
    )


def test_only_newcomers_are_added_each_once() -> None:
    decision = friends(BEN).when(add(CARL, BEN, CARL, ANNA), by=ANNA)
    assert decision.answer == Added(added=[CARL])


def test_adding_who_is_in_already_is_no_event() -> None:
    assert friends(BEN).when(add(BEN), by=ANNA) == Decision([], Added(added=[]))


def test_only_known_users_are_added() -> None:
    with pytest.raises(NotFound):
        friends(BEN).when(add(CARL, NOBODY), by=ANNA)


def test_an_admin_adds_members() -> None:
    assert with_admin(friends(BEN), BEN).when(add(CARL), by=BEN).events


def test_a_group_grows_to_300_and_no_further() -> None:
    history = friends(*crowd(MAX_PARTICIPANTS - 2))
    with pytest.raises(Conflict):
        history.when(add(BEN, CARL), by=ANNA)
    history.record(*history.when(add(BEN), by=ANNA).events)
    with pytest.raises(Conflict):
        history.when(add(CARL), by=ANNA)
    assert history.when(add(BEN), by=ANNA).events == []


def test_a_place_that_a_member_left_is_free_again() -> None:
    others = crowd(MAX_PARTICIPANTS - 1)
    left = MemberLeft(chat_id=CHAT, user_id=others[0])
    assert friends(*others).record(left).when(add(BEN), by=ANNA).events


def test_a_former_member_can_be_added_again() -> None:
    history = friends(BEN).record(MemberLeft(chat_id=CHAT, user_id=BEN))
    assert history.when(add(BEN), by=ANNA).answer == Added(added=[BEN])


# remove-member


def remove(user: UserId) -> RemoveMember:
    return RemoveMember(chat_id=CHAT, user_id=user)


def test_removing_a_member_tells_the_chat() -> None:
    assert friends(BEN).when(remove(BEN), by=ANNA) == Decision(
        [
            MemberRemoved(chat_id=CHAT, by=ANNA, user_id=BEN),
            told("member_removed", ANNA, BEN),
        ],
        releases=members_of(BEN),
    )


def test_an_admin_removes_members() -> None:
    assert with_admin(friends(BEN, CARL), BEN).when(remove(CARL), by=BEN).events


@pytest.mark.parametrize("target", [ANNA, CARL])
def test_an_admin_removes_neither_the_owner_nor_an_admin(target: UserId) -> None:
    history = with_admin(with_admin(friends(BEN, CARL), BEN), CARL)
    with pytest.raises(Forbidden):
        history.when(remove(target), by=BEN)


def test_the_owner_removes_an_admin() -> None:
    assert with_admin(friends(BEN), BEN).when(remove(BEN), by=ANNA).events


def test_removing_a_former_member_is_no_event() -> None:
    history = friends(BEN).record(MemberLeft(chat_id=CHAT, user_id=BEN))
    assert history.when(remove(BEN), by=ANNA) == Decision([])


def test_who_never_was_a_member_can_not_be_removed() -> None:
    with pytest.raises(NotFound):
        friends(BEN).when(remove(CARL), by=ANNA)


def test_nobody_removes_themselves() -> None:
    with pytest.raises(Invalid):
        friends(BEN).when(remove(ANNA), by=ANNA)


# leave-group

LEAVE = LeaveGroup(chat_id=CHAT)


def test_a_member_leaves() -> None:
    assert friends(BEN).when(LEAVE, by=BEN) == Decision(
        [MemberLeft(chat_id=CHAT, user_id=BEN), told("member_left", BEN, BEN)],
        Left(new_owner_id=None),
        releases=members_of(BEN),
    )


def test_the_longest_member_follows_an_owner_who_leaves() -> None:
    assert friends(CARL, BEN).when(LEAVE, by=ANNA) == Decision(
        [
            MemberLeft(chat_id=CHAT, user_id=ANNA),
            told("member_left", ANNA, ANNA),
            OwnershipTransferred(chat_id=CHAT, from_id=ANNA, to_id=CARL),
            told("ownership_transferred", ANNA, CARL, ordinal=1),
        ],
        Left(new_owner_id=CARL),
        releases=members_of(ANNA),
    )


def test_the_first_admin_goes_before_longer_members() -> None:
    history = with_admin(with_admin(friends(BEN, CARL, DORA), DORA), CARL)
    assert history.when(LEAVE, by=ANNA).answer == Left(new_owner_id=CARL)


def test_who_left_inherits_nothing() -> None:
    history = friends(BEN, CARL).record(MemberLeft(chat_id=CHAT, user_id=BEN))
    assert history.when(LEAVE, by=ANNA).answer == Left(new_owner_id=CARL)


def test_who_rejoins_keeps_the_place_in_line() -> None:
    history = friends(BEN, CARL).record(
        MemberLeft(chat_id=CHAT, user_id=BEN), MembersAdded(chat_id=CHAT, by=ANNA, user_ids=[BEN])
    )
    assert history.when(LEAVE, by=ANNA).answer == Left(new_owner_id=BEN)


def test_when_the_last_one_leaves_the_group_is_deleted_and_its_slug_free() -> None:
    history = friends(BEN).record(MemberLeft(chat_id=CHAT, user_id=BEN))
    decision = history.when(LEAVE, by=ANNA)
    assert decision == Decision(
        [
            MemberLeft(chat_id=CHAT, user_id=ANNA),
            told("member_left", ANNA, ANNA),
            GroupDeleted(chat_id=CHAT, by=ANNA),
        ],
        Left(new_owner_id=None),
        releases=(*members_of(ANNA), Claim("slug", "friends", chat_stream(CHAT))),
    )
    history.record(*decision.events)
    assert history.state(chat_stream(CHAT)).is_deleted


# delete-group

DELETE = DeleteGroup(chat_id=CHAT)


def test_the_owner_deletes_a_group_and_its_slug_is_free() -> None:
    decision = friends(BEN, CARL).when(DELETE, by=ANNA)
    assert decision == Decision(
        [GroupDeleted(chat_id=CHAT, by=ANNA)],
        releases=(Claim("slug", "friends", chat_stream(CHAT)), *members_of(ANNA, BEN, CARL)),
    )


def test_only_those_who_are_in_a_deleted_group_give_up_their_membership() -> None:
    history = friends(BEN, CARL).record(MemberLeft(chat_id=CHAT, user_id=BEN))
    releases = history.when(DELETE, by=ANNA).releases
    assert releases[1:] == members_of(ANNA, CARL)


# change-role


def appoint(user: UserId) -> ChangeRole:
    return ChangeRole(chat_id=CHAT, user_id=user, role="admin")


def dismiss(user: UserId) -> ChangeRole:
    return ChangeRole(chat_id=CHAT, user_id=user, role="member")


def test_the_owner_appoints_an_admin() -> None:
    assert friends(BEN).when(appoint(BEN), by=ANNA) == Decision(
        [
            RoleChanged(chat_id=CHAT, by=ANNA, user_id=BEN, role="admin"),
            told("admin_appointed", ANNA, BEN),
        ]
    )


def test_the_owner_dismisses_an_admin() -> None:
    assert with_admin(friends(BEN), BEN).when(dismiss(BEN), by=ANNA) == Decision(
        [
            RoleChanged(chat_id=CHAT, by=ANNA, user_id=BEN, role="member"),
            told("admin_dismissed", ANNA, BEN),
        ]
    )


def test_a_role_that_somebody_has_is_no_event() -> None:
    assert friends(BEN).when(dismiss(BEN), by=ANNA) == Decision([])
    assert with_admin(friends(BEN), BEN).when(appoint(BEN), by=ANNA) == Decision([])


@pytest.mark.parametrize("command", [appoint(ANNA), dismiss(ANNA)])
def test_an_owner_does_not_change_their_own_role(command: ChangeRole) -> None:
    with pytest.raises(Invalid) as refusal:
        friends(BEN).when(command, by=ANNA)
    assert refusal.value.field == "user_id"


def test_only_participants_have_a_role() -> None:
    with pytest.raises(NotFound):
        friends(BEN).when(appoint(CARL), by=ANNA)
    with pytest.raises(NotFound):
        friends(BEN).record(MemberLeft(chat_id=CHAT, user_id=BEN)).when(appoint(BEN), by=ANNA)


def test_who_rejoins_is_no_admin_any_more() -> None:
    history = with_admin(friends(BEN), BEN).record(
        MemberLeft(chat_id=CHAT, user_id=BEN), MembersAdded(chat_id=CHAT, by=ANNA, user_ids=[BEN])
    )
    with pytest.raises(Forbidden):
        history.when(update(name="Foes"), by=BEN)


# transfer-ownership


def transfer(user: UserId) -> TransferOwnership:
    return TransferOwnership(chat_id=CHAT, user_id=user)


def test_an_owner_hands_the_group_on_and_is_an_admin_then() -> None:
    history = friends(BEN)
    decision = history.when(transfer(BEN), by=ANNA)
    assert decision == Decision(
        [
            OwnershipTransferred(chat_id=CHAT, from_id=ANNA, to_id=BEN),
            RoleChanged(chat_id=CHAT, by=ANNA, user_id=ANNA, role="admin"),
            told("ownership_transferred", ANNA, BEN),
        ]
    )
    history.record(*decision.events)
    assert history.state(chat_stream(CHAT)).roles == {ANNA: "admin", BEN: "owner"}
    assert history.state(chat_stream(CHAT)).owner_id == BEN


def test_handing_the_group_to_oneself_is_no_event() -> None:
    assert friends(BEN).when(transfer(ANNA), by=ANNA) == Decision([])


def test_only_a_participant_becomes_the_owner() -> None:
    with pytest.raises(NotFound):
        friends(BEN).when(transfer(CARL), by=ANNA)


def test_a_former_owner_has_an_admins_rights_only() -> None:
    history = friends(BEN, CARL)
    history.record(*history.when(transfer(BEN), by=ANNA).events)
    assert history.when(remove(CARL), by=ANNA).events
    with pytest.raises(Forbidden):
        history.when(remove(BEN), by=ANNA)
    with pytest.raises(Forbidden):
        history.when(transfer(CARL), by=ANNA)


# Blocks and deleted accounts


def test_who_was_blocked_by_somebody_does_not_add_them() -> None:
    history = friends(BEN).record(contact(CARL, ANNA, blocked_by=[CARL]))
    with pytest.raises(Blocked):
        history.when(add(DORA, CARL), by=ANNA)
    with pytest.raises(Blocked):
        history.when(create(BEN, CARL, chat_id=OTHER_CHAT), by=ANNA)
    with_admin(history, BEN)
    assert history.when(add(CARL), by=BEN).events, "the block is against Anna alone"


def test_who_blocks_somebody_can_still_add_them() -> None:
    history = friends(BEN).record(contact(CARL, ANNA, blocked_by=[ANNA]))
    assert history.when(add(CARL), by=ANNA).events
    assert history.when(create(CARL, chat_id=OTHER_CHAT), by=ANNA).events


def test_a_block_puts_nobody_out_of_a_group_they_share() -> None:
    history = friends(BEN).record(contact(BEN, ANNA, blocked_by=[BEN]))
    assert history.when(add(BEN), by=ANNA) == Decision([], Added(added=[]))


def test_a_deleted_account_is_added_nowhere() -> None:
    history = friends(BEN).record(deleted(CARL))
    with pytest.raises(NotFound):
        history.when(add(CARL), by=ANNA)
    with pytest.raises(NotFound):
        history.when(create(BEN, CARL, chat_id=OTHER_CHAT), by=ANNA)


def test_a_group_takes_no_id_of_a_direct_chat() -> None:
    with pytest.raises(Invalid) as refusal:
        given(*people(ANNA, BEN)).when(create(BEN, chat_id=direct_chat_id(BEN, CARL)), by=ANNA)
    assert refusal.value.field == "chat_id"


# Whom the chat exists for, and who may do what

OWNERS_COMMANDS: list[Command] = [
    update(name="Foes"),
    add(CARL),
    remove(BEN),
    DELETE,
    appoint(BEN),
    transfer(BEN),
]
ALL_COMMANDS: list[Command] = [*OWNERS_COMMANDS, LEAVE]


@pytest.mark.parametrize("command", [DELETE, appoint(CARL), transfer(CARL)], ids=named)
def test_an_admin_is_no_owner(command: Command) -> None:
    with pytest.raises(Forbidden):
        with_admin(friends(BEN, CARL), BEN).when(command, by=BEN)


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=named)
def test_a_direct_chat_is_no_group(command: Command) -> None:
    opened = msgspec.structs.replace(direct(ANNA, BEN), chat_id=CHAT)
    with pytest.raises(Forbidden):
        given(*people(ANNA, BEN, CARL), opened).when(command, by=ANNA)


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=named)
def test_a_deleted_account_is_in_no_group_from_that_moment(command: Command) -> None:
    with pytest.raises(NotFound):
        friends(BEN).record(deleted(ANNA)).when(command, by=ANNA)


@pytest.mark.parametrize("command", OWNERS_COMMANDS, ids=named)
def test_a_member_may_not_change_the_group(command: Command) -> None:
    with pytest.raises(Forbidden):
        friends(BEN, DORA).when(command, by=DORA)


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=named)
def test_strangers_and_former_members_find_no_chat(command: Command) -> None:
    history = friends(BEN, DORA)
    with pytest.raises(NotFound):
        history.when(command, by=CARL)
    for gone in (
        MemberLeft(chat_id=CHAT, user_id=DORA),
        MemberRemoved(chat_id=CHAT, by=ANNA, user_id=DORA),
    ):
        with pytest.raises(NotFound):
            friends(BEN, DORA).record(gone).when(command, by=DORA)


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=named)
def test_a_deleted_group_is_there_for_nobody(command: Command) -> None:
    with pytest.raises(NotFound):
        friends(BEN).record(GroupDeleted(chat_id=CHAT, by=ANNA)).when(command, by=ANNA)


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=named)
def test_what_never_was_is_not_found(command: Command) -> None:
    with pytest.raises(NotFound):
        given(*people(ANNA, BEN), group(BEN, chat=OTHER_CHAT)).when(command, by=ANNA)


# What the append guards


def test_adding_guards_the_chat_the_newcomers_and_what_is_between() -> None:
    assert friends(BEN).used(add(CARL), by=ANNA) == {
        chat_stream(CHAT): 1,
        user_stream(ANNA): 1,
        user_stream(CARL): 1,
        contact_stream(ANNA, CARL): 0,
    }


def test_creating_guards_that_the_chat_is_new() -> None:
    used = given(*people(ANNA, BEN)).used(create(BEN), by=ANNA)
    assert used == {
        chat_stream(CHAT): 0,
        user_stream(ANNA): 1,
        user_stream(BEN): 1,
        contact_stream(ANNA, BEN): 0,
    }


def test_a_change_answers_nothing_more() -> None:
    assert friends(BEN).when(remove(BEN), by=ANNA).answer == Answer()
