"""set-status, delete-account and what follows from it (settle-deletion).

Rules: data-model.md, entity 1; contract.md, "A deleted account".
"""

from typing import Any

import pytest

from commands.change_password import ChangePassword
from commands.command import Claim, Command, Decision
from commands.create_group import CreateGroup
from commands.delete_account import DeleteAccount
from commands.register_user import RegisterUser
from commands.set_status import SetStatus
from commands.settle_deletion import SettleDeletion
from commands.update_profile import UpdateProfile
from domain.chat import GroupDeleted, MemberLeft, OwnershipTransferred
from domain.contact import ContactRemoved, Standing
from domain.ids import ChatId, MessageId, UserId, chat_stream, contact_stream, user_stream
from domain.message import SystemMessageSent
from domain.refusals import Conflict, Invalid, NotFound, WrongPassword
from domain.user import AccountDeleted, StatusChanged, User, erased_username
from tests.commands.history import (
    ANNA,
    BEN,
    CARL,
    CHAT,
    NOBODY,
    OTHER_CHAT,
    PASSWORD,
    History,
    chat_id,
    contact,
    deleted,
    direct,
    given,
    group,
    new_id,
    people,
    user_id,
)

DELETE = DeleteAccount(password=PASSWORD)


# set-status


@pytest.mark.parametrize("status", ["online", "away"])
def test_a_status_is_set(status: Any) -> None:
    decision = given(*people(ANNA)).when(SetStatus(status=status), by=ANNA)
    assert decision == Decision([StatusChanged(user_id=ANNA, status=status)])


def test_a_status_that_one_has_is_no_event() -> None:
    history = given(*people(ANNA))
    assert history.when(SetStatus(status="offline"), by=ANNA) == Decision([])
    history.record(StatusChanged(user_id=ANNA, status="away"))
    assert history.when(SetStatus(status="away"), by=ANNA) == Decision([])
    assert history.when(SetStatus(status="offline"), by=ANNA).events


def test_nobody_has_no_status() -> None:
    with pytest.raises(NotFound):
        given().when(SetStatus(status="online"), by=NOBODY)


# delete-account


@pytest.mark.parametrize("erase", [False, True])
def test_who_knows_the_password_deletes_the_account(erase: bool) -> None:
    command = DeleteAccount(password=PASSWORD, erase_messages=erase)
    decision = given(*people(ANNA)).when(command, by=ANNA)
    assert decision == Decision([AccountDeleted(user_id=ANNA, erase_messages=erase)])


def test_the_username_of_a_deleted_account_stays_reserved() -> None:
    assert given(*people(ANNA)).when(DELETE, by=ANNA).releases == ()


def test_a_wrong_password_deletes_nothing() -> None:
    with pytest.raises(WrongPassword):
        given(*people(ANNA)).when(DeleteAccount(password="wrong password"), by=ANNA)
    with pytest.raises(WrongPassword):
        given().when(DELETE, by=NOBODY)


def test_an_account_is_deleted_once() -> None:
    assert given(*people(ANNA), deleted(ANNA)).when(DELETE, by=ANNA) == Decision([])


def test_of_a_deleted_account_the_state_keeps_nothing_personal() -> None:
    history = given(*people(ANNA), deleted(ANNA))
    state: User = history.state(user_stream(ANNA))
    assert state == User(exists=True, position=1, is_deleted=True)
    assert not state.is_active


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        (UpdateProfile(display_name="x"), NotFound),
        (ChangePassword(current_password=PASSWORD, new_password="another one"), WrongPassword),
        (SetStatus(status="online"), NotFound),
        (CreateGroup(name="x", member_ids=[BEN]), NotFound),
    ],
    ids=["profile", "password", "status", "group"],
)
def test_a_deleted_account_does_nothing_more(command: Command, refusal: type[Exception]) -> None:
    with pytest.raises(refusal):
        given(*people(ANNA, BEN), deleted(ANNA)).when(command, by=ANNA)


def test_the_id_of_a_deleted_account_stays_taken() -> None:
    again = RegisterUser(username="user_1", password=PASSWORD, user_id=ANNA)
    with pytest.raises(Conflict):
        given(*people(ANNA), deleted(ANNA)).when(again, by=None)


def test_nobody_takes_the_name_that_a_deleted_account_is_shown_by() -> None:
    """It would stand in the way of the deletion, for every projector."""
    with pytest.raises(Invalid) as refusal:
        given().when(RegisterUser(username=erased_username(ANNA), password=PASSWORD), by=None)
    assert refusal.value.field == "username"
    for name in ("deleted_user", erased_username(ANNA)[:-1], erased_username(ANNA).upper()):
        assert given().when(RegisterUser(username=name, password=PASSWORD), by=None).events


# settle-deletion


def settle(*chat_ids: ChatId, contacts: tuple[UserId, ...] = ()) -> SettleDeletion:
    return SettleDeletion(chat_ids=list(chat_ids), contact_ids=list(contacts))


def told(kind: Any, ordinal: int, chat: ChatId, *user_ids: UserId) -> SystemMessageSent:
    return SystemMessageSent(
        message_id=MessageId(new_id(ordinal)),
        chat_id=chat,
        kind=kind,
        actor_id=ANNA,
        user_ids=list(user_ids),
    )


def member(user: UserId, chat: ChatId) -> Claim:
    return Claim("membership", f"{user}/{chat}", chat_stream(chat))


def gone(*events: Any) -> History:
    return given(*people(ANNA, BEN, CARL), *events, deleted(ANNA))


def test_a_deleted_account_leaves_its_groups_and_ownership_moves() -> None:
    history = gone(
        group(CARL, BEN, slug="own"), group(ANNA, owner=BEN, chat=OTHER_CHAT, slug="others")
    )
    assert history.when(settle(CHAT, OTHER_CHAT), by=ANNA) == Decision(
        [
            MemberLeft(chat_id=CHAT, user_id=ANNA),
            told("member_left", 0, CHAT, ANNA),
            OwnershipTransferred(chat_id=CHAT, from_id=ANNA, to_id=CARL),
            told("ownership_transferred", 1, CHAT, CARL),
            MemberLeft(chat_id=OTHER_CHAT, user_id=ANNA),
            told("member_left", 2, OTHER_CHAT, ANNA),
        ],
        releases=(member(ANNA, CHAT), member(ANNA, OTHER_CHAT)),
    )


def test_a_group_of_a_deleted_account_alone_is_deleted() -> None:
    history = gone(group(BEN, slug="own"), MemberLeft(chat_id=CHAT, user_id=BEN))
    decision = history.when(settle(CHAT), by=ANNA)
    assert decision.events[-1] == GroupDeleted(chat_id=CHAT, by=ANNA)
    assert Claim("slug", "own", chat_stream(CHAT)) in decision.releases


def test_contacts_and_blocks_of_a_deleted_account_are_removed() -> None:
    history = gone(contact(ANNA, BEN, blocked_by=[BEN]), contact(CARL, ANNA))
    decision = history.when(settle(contacts=(BEN, CARL)), by=ANNA)
    assert decision.events == [
        ContactRemoved(user_id=ANNA, contact_id=other, standing=Standing()) for other in (BEN, CARL)
    ]
    assert {(claim.scope, claim.holder) for claim in decision.releases} == {
        ("contact", contact_stream(ANNA, BEN)),
        ("contact", contact_stream(ANNA, CARL)),
    }
    assert {claim.value for claim in decision.releases} == {
        f"{one}/{other}"
        for pair in ((ANNA, BEN), (ANNA, CARL))
        for one, other in (pair, pair[::-1])
    }


def test_what_is_settled_is_not_settled_again() -> None:
    history = gone(group(BEN), contact(ANNA, BEN))
    command = settle(CHAT, contacts=(BEN,))
    history.record(*history.when(command, by=ANNA).events)
    assert history.when(command, by=ANNA) == Decision([])


def test_a_direct_chat_keeps_its_two() -> None:
    history = gone(contact(ANNA, BEN), direct(ANNA, BEN))
    assert history.when(settle(direct(ANNA, BEN).chat_id), by=ANNA) == Decision([])


def test_a_living_account_is_not_settled() -> None:
    history = given(*people(ANNA, BEN), group(BEN), contact(ANNA, BEN))
    assert history.when(settle(CHAT, contacts=(BEN,)), by=ANNA) == Decision([])


def test_many_groups_and_contacts_are_looked_up_at_once() -> None:
    """What a decision may ask for one after the other has a limit."""
    others = [user_id(number) for number in range(100, 140)]
    groups = [
        group(BEN, chat=chat_id(number), slug=f"group-{number}") for number in range(100, 140)
    ]
    contacts = [contact(ANNA, other) for other in others]
    history = gone(*people(*others), *groups, *contacts)
    command = settle(*(one.chat_id for one in groups), contacts=tuple(others))
    decision = history.when(command, by=ANNA)
    assert len(decision.events) == 4 * len(groups) + len(contacts)
