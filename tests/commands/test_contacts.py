"""request-contact, accept-contact, remove-contact, block-contact, unblock-contact.

Rules: data-model.md, entity 2; contract.md, "Block".
"""

from datetime import timedelta
from typing import Any

import pytest

from commands.accept_contact import AcceptContact
from commands.block_contact import BlockContact
from commands.command import Claim, Command, Decision
from commands.remove_contact import RemoveContact
from commands.request_contact import RequestContact
from commands.unblock_contact import UnblockContact
from domain.contact import (
    Contact,
    ContactAccepted,
    ContactBlocked,
    ContactEvent,
    ContactRemoved,
    ContactRequested,
    ContactUnblocked,
    Standing,
)
from domain.ids import UserId, contact_stream, user_stream
from domain.refusals import Blocked, Forbidden, Invalid, NotFound
from tests.commands.history import (
    ANNA,
    BEN,
    FIRST_TIME,
    NOBODY,
    NOW,
    History,
    contact,
    deleted,
    given,
    people,
)

EARLIER = FIRST_TIME + timedelta(hours=1)
STREAM = contact_stream(ANNA, BEN)
ANNAS_CLAIMS = (
    Claim("contact", f"{ANNA}/{BEN}", STREAM),
    Claim("contact", f"{BEN}/{ANNA}", STREAM),
)
CLAIMS = {ANNA: ANNAS_CLAIMS, BEN: ANNAS_CLAIMS[::-1]}

REQUEST_BEN, REQUEST_ANNA = RequestContact(user_id=BEN), RequestContact(user_id=ANNA)
ACCEPT_BEN, ACCEPT_ANNA = AcceptContact(user_id=BEN), AcceptContact(user_id=ANNA)
REMOVE_BEN, REMOVE_ANNA = RemoveContact(user_id=BEN), RemoveContact(user_id=ANNA)
BLOCK_BEN, BLOCK_ANNA = BlockContact(user_id=BEN), BlockContact(user_id=ANNA)
UNBLOCK_BEN, UNBLOCK_ANNA = UnblockContact(user_id=BEN), UnblockContact(user_id=ANNA)
ALL: list[Command] = [REQUEST_BEN, ACCEPT_BEN, REMOVE_BEN, BLOCK_BEN, UNBLOCK_BEN]


def requested(blocked_by: tuple[UserId, ...] = ()) -> ContactRequested:
    """Anna asked Ben."""
    blocked_at = dict.fromkeys(blocked_by, EARLIER)
    standing = Standing(requested_by=ANNA, requested_at=EARLIER, blocked_at=blocked_at)
    return ContactRequested(user_id=ANNA, contact_id=BEN, standing=standing)


def blocked(*by: UserId) -> ContactBlocked:
    """There is nothing between them but that."""
    standing = Standing(blocked_at=dict.fromkeys(by, EARLIER))
    return ContactBlocked(user_id=ANNA, contact_id=BEN, standing=standing)


def two(*events: ContactEvent) -> History:
    return given(*people(ANNA, BEN), *events)


def happened(kind: type[ContactEvent], by: UserId, **standing: Any) -> ContactEvent:
    other = BEN if by == ANNA else ANNA
    return kind(user_id=by, contact_id=other, standing=Standing(**standing))


def named(value: object) -> str:
    return type(value).__name__


# request-contact and accept-contact


def test_requesting_asks_the_other() -> None:
    assert two().when(REQUEST_BEN, by=ANNA) == Decision(
        [happened(ContactRequested, ANNA, requested_by=ANNA, requested_at=NOW)], claims=CLAIMS[ANNA]
    )


def test_a_request_is_in_the_stream_of_the_pair_and_guards_both_accounts() -> None:
    assert two().used(REQUEST_BEN, by=ANNA) == {
        STREAM: 0,
        user_stream(ANNA): 1,
        user_stream(BEN): 1,
    }
    [event] = two().when(REQUEST_ANNA, by=BEN).events
    assert event.stream == STREAM


def test_the_other_accepts() -> None:
    history = two(requested())
    decision = history.when(ACCEPT_ANNA, by=BEN)
    accepted = happened(
        ContactAccepted, BEN, requested_by=ANNA, requested_at=EARLIER, accepted_at=NOW
    )
    assert decision == Decision([accepted], claims=CLAIMS[BEN])
    state: Contact = history.record(*decision.events).state(STREAM)
    assert state.is_accepted
    assert not state.is_requested


def test_both_requesting_is_accepting() -> None:
    accepted = happened(
        ContactAccepted, BEN, requested_by=ANNA, requested_at=EARLIER, accepted_at=NOW
    )
    assert two(requested()).when(REQUEST_ANNA, by=BEN) == Decision([accepted], claims=CLAIMS[BEN])


def test_who_asked_does_not_accept_for_the_other() -> None:
    with pytest.raises(Forbidden):
        two(requested()).when(ACCEPT_BEN, by=ANNA)


def test_without_a_request_there_is_nothing_to_accept() -> None:
    with pytest.raises(NotFound):
        two().when(ACCEPT_BEN, by=ANNA)
    with pytest.raises(NotFound):
        two(blocked(ANNA)).when(ACCEPT_ANNA, by=BEN)


@pytest.mark.parametrize(
    ("before", "command", "by"),
    [
        (requested(), REQUEST_BEN, ANNA),
        (contact(ANNA, BEN), REQUEST_BEN, ANNA),
        (contact(ANNA, BEN), REQUEST_ANNA, BEN),
        (contact(ANNA, BEN), ACCEPT_ANNA, BEN),
        (contact(ANNA, BEN), ACCEPT_BEN, ANNA),
    ],
)
def test_what_is_so_already_is_no_event(before: ContactEvent, command: Command, by: UserId) -> None:
    assert two(before).when(command, by=by) == Decision([])


# remove-contact


@pytest.mark.parametrize("by", [ANNA, BEN])
@pytest.mark.parametrize("before", [requested(), contact(ANNA, BEN)], ids=["asked", "accepted"])
def test_either_removes_a_contact_or_a_request(before: ContactEvent, by: UserId) -> None:
    """The one who was asked declines by it, the one who asked withdraws."""
    history = two(before)
    decision = history.when(REMOVE_BEN if by == ANNA else REMOVE_ANNA, by=by)
    assert decision == Decision([happened(ContactRemoved, by)], releases=CLAIMS[by])
    history.record(*decision.events)
    assert history.state(STREAM) == Contact()
    assert history.when(REQUEST_BEN, by=ANNA).events, "and may ask again"


def test_removing_what_is_not_there_is_no_event() -> None:
    assert two().when(REMOVE_BEN, by=ANNA) == Decision([])
    assert two(blocked(ANNA, BEN)).when(REMOVE_BEN, by=ANNA) == Decision([])


@pytest.mark.parametrize("by", [ANNA, BEN])
def test_removing_leaves_blocks(by: UserId) -> None:
    decision = two(contact(ANNA, BEN, blocked_by=[BEN])).when(
        REMOVE_BEN if by == ANNA else REMOVE_ANNA, by=by
    )
    assert decision == Decision(
        [happened(ContactRemoved, by, blocked_at={BEN: FIRST_TIME})], claims=CLAIMS[by]
    )


# block-contact and unblock-contact


def test_blocking_lies_over_what_is_between_the_two() -> None:
    decision = two(contact(ANNA, BEN)).when(BLOCK_BEN, by=ANNA)
    blocking = happened(
        ContactBlocked,
        ANNA,
        requested_by=ANNA,
        requested_at=FIRST_TIME,
        accepted_at=FIRST_TIME,
        blocked_at={ANNA: NOW},
    )
    assert decision == Decision([blocking], claims=CLAIMS[ANNA])


def test_a_stranger_can_be_blocked() -> None:
    decision = two().when(BLOCK_BEN, by=ANNA)
    assert decision == Decision(
        [happened(ContactBlocked, ANNA, blocked_at={ANNA: NOW})], claims=CLAIMS[ANNA]
    )


def test_each_blocks_for_themselves() -> None:
    history = two(blocked(ANNA))
    assert history.when(BLOCK_BEN, by=ANNA) == Decision([])
    [both] = history.when(BLOCK_ANNA, by=BEN).events
    assert both == happened(ContactBlocked, BEN, blocked_at={ANNA: EARLIER, BEN: NOW})
    [one] = history.record(both).when(UNBLOCK_BEN, by=ANNA).events
    assert one == happened(ContactUnblocked, ANNA, blocked_at={BEN: NOW})


@pytest.mark.parametrize(
    "before", [requested(), contact(ANNA, BEN)], ids=["a request", "a contact"]
)
@pytest.mark.parametrize("by", [ANNA, BEN])
def test_unblocking_restores_what_was(before: ContactEvent, by: UserId) -> None:
    history = two(before)
    block, unblock = (BLOCK_BEN, UNBLOCK_BEN) if by == ANNA else (BLOCK_ANNA, UNBLOCK_ANNA)
    history.record(*history.when(block, by=by).events)
    history.record(*history.when(unblock, by=by).events)
    assert history.state(STREAM) == Contact(before.standing)


def test_unblocking_a_stranger_leaves_nothing() -> None:
    decision = two(blocked(ANNA)).when(UNBLOCK_BEN, by=ANNA)
    assert decision == Decision([happened(ContactUnblocked, ANNA)], releases=CLAIMS[ANNA])


def test_only_ones_own_block_is_taken_away() -> None:
    assert two(blocked(ANNA)).when(UNBLOCK_ANNA, by=BEN) == Decision([])
    assert two().when(UNBLOCK_BEN, by=ANNA) == Decision([])


@pytest.mark.parametrize("by", [ANNA, BEN], ids=["blocker", "blocked"])
@pytest.mark.parametrize(
    "before",
    [blocked(ANNA), requested((ANNA,)), contact(ANNA, BEN, blocked_by=[ANNA])],
    ids=["strangers", "asked", "contacts"],
)
def test_under_a_block_nobody_requests(before: ContactEvent, by: UserId) -> None:
    with pytest.raises(Blocked):
        two(before).when(REQUEST_BEN if by == ANNA else REQUEST_ANNA, by=by)


def test_who_blocks_does_not_accept() -> None:
    with pytest.raises(Blocked):
        two(requested((BEN,))).when(ACCEPT_ANNA, by=BEN)


def test_who_is_blocked_accepts_and_is_not_told() -> None:
    decision = two(requested((ANNA,))).when(ACCEPT_ANNA, by=BEN)
    assert decision.events == [
        happened(
            ContactAccepted,
            BEN,
            requested_by=ANNA,
            requested_at=EARLIER,
            accepted_at=NOW,
            blocked_at={ANNA: EARLIER},
        )
    ]


def test_who_is_blocked_removes_as_ever() -> None:
    assert two(contact(ANNA, BEN, blocked_by=[ANNA])).when(REMOVE_ANNA, by=BEN).events


# Who the other may be


@pytest.mark.parametrize("command", ALL, ids=named)
def test_nobody_is_a_contact_of_oneself(command: Command) -> None:
    with pytest.raises(Invalid) as refusal:
        two().when(type(command)(user_id=ANNA), by=ANNA)
    assert refusal.value.field == "user_id"


@pytest.mark.parametrize("command", ALL, ids=named)
def test_a_contact_is_a_known_user(command: Command) -> None:
    with pytest.raises(NotFound):
        two().when(type(command)(user_id=NOBODY), by=ANNA)


@pytest.mark.parametrize("command", ALL, ids=named)
@pytest.mark.parametrize("gone", [ANNA, BEN])
def test_a_deleted_account_has_no_contacts_and_is_none(command: Command, gone: UserId) -> None:
    with pytest.raises(NotFound):
        two(contact(ANNA, BEN)).record(deleted(gone)).when(command, by=ANNA)
