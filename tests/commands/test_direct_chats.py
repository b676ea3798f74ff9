"""open-direct-chat, and what contacts, blocks and deleted accounts are to saying something there.

Rules: data-model.md, entity 3; contract.md, "Rules beyond data-model.md".
"""

import pytest

from commands.add_reaction import AddReaction
from commands.command import Claim, Command, Decision
from commands.delete_message import DeleteMessage
from commands.edit_message import EditMessage
from commands.mark_delivered import MarkDelivered
from commands.mark_read import MarkRead
from commands.open_direct_chat import OpenDirectChat, Opened
from commands.remove_reaction import RemoveReaction
from commands.send_message import SendMessage
from domain.chat import DirectChatOpened
from domain.contact import ContactBlocked, ContactEvent, ContactRemoved, ContactRequested, Standing
from domain.ids import UserId, chat_stream, contact_stream, direct_chat_id, user_stream
from domain.message import ReactionAdded
from domain.refusals import Blocked, Forbidden, Invalid, NotContacts, NotFound
from tests.commands.history import (
    ANNA,
    BEN,
    CARL,
    FIRST_TIME,
    NOBODY,
    History,
    chat_id,
    contact,
    deleted,
    direct,
    given,
    group,
    message_id,
    people,
    sent,
)

CHAT, GROUP = direct_chat_id(ANNA, BEN), chat_id(1)
SLUG = f"direct-{ANNA}-{BEN}"
OPEN_BEN, OPEN_ANNA = OpenDirectChat(user_id=BEN), OpenDirectChat(user_id=ANNA)

SEND = SendMessage(chat_id=CHAT, content="hi")
EDIT = EditMessage(message_id=message_id(1), content="hi")
REACT = AddReaction(message_id=message_id(1), emoji="👍")
SAYING: list[Command] = [SEND, EDIT, REACT]
KEEPING: list[Command] = [
    DeleteMessage(message_id=message_id(1)),
    RemoveReaction(message_id=message_id(1), emoji="🎉"),
    MarkRead(chat_id=CHAT),
    MarkDelivered(chat_id=CHAT, up_to_message_id=message_id(2)),
]

REQUESTED = ContactRequested(
    user_id=ANNA, contact_id=BEN, standing=Standing(requested_by=ANNA, requested_at=FIRST_TIME)
)
REMOVED = ContactRemoved(user_id=BEN, contact_id=ANNA, standing=Standing())
BLOCKED_BY_BEN = contact(ANNA, BEN, blocked_by=[BEN])
BLOCKED_BY_ANNA = contact(ANNA, BEN, blocked_by=[ANNA])


def two(*events: ContactEvent) -> History:
    return given(*people(ANNA, BEN, CARL), *events)


def opened(*later: ContactEvent) -> History:
    """Anna and Ben have said something each, Anna has reacted to herself, before `later`."""
    party = ReactionAdded(message_id=message_id(1), chat_id=CHAT, user_id=ANNA, emoji="🎉")
    return two(contact(ANNA, BEN)).record(
        direct(ANNA, BEN), sent(1, ANNA, CHAT), sent(2, BEN, CHAT), party, *later
    )


def named(value: object) -> str:
    return type(value).__name__


# open-direct-chat


def test_a_contact_opens_the_direct_chat_of_the_pair() -> None:
    decision = two(contact(ANNA, BEN)).when(OPEN_ANNA, by=BEN)
    assert decision == Decision(
        [DirectChatOpened(chat_id=CHAT, by=BEN, user_ids=[ANNA, BEN], slug=SLUG)],
        Opened(chat_id=CHAT, created=True),
        claims=(Claim("slug", SLUG, chat_stream(CHAT)),),
    )


def test_both_sides_open_the_same_chat() -> None:
    history = two(contact(ANNA, BEN))
    [first], [second] = (
        history.when(command, by=by).events for command, by in ((OPEN_BEN, ANNA), (OPEN_ANNA, BEN))
    )
    assert first.stream == second.stream == chat_stream(CHAT)


def test_opening_guards_that_the_chat_is_new_and_the_two_are_contacts() -> None:
    assert two(contact(ANNA, BEN)).used(OPEN_BEN, by=ANNA) == {
        chat_stream(CHAT): 0,
        contact_stream(ANNA, BEN): 1,
        user_stream(ANNA): 1,
        user_stream(BEN): 1,
    }


@pytest.mark.parametrize("between", [(), (REQUESTED,), (contact(ANNA, BEN), REMOVED)])
def test_a_direct_chat_needs_an_accepted_contact(between: tuple[ContactEvent, ...]) -> None:
    for command, by in ((OPEN_BEN, ANNA), (OPEN_ANNA, BEN)):
        with pytest.raises(NotContacts):
            two(*between).when(command, by=by)


@pytest.mark.parametrize("between", [BLOCKED_BY_ANNA, BLOCKED_BY_BEN])
def test_no_direct_chat_is_opened_under_a_block(between: ContactEvent) -> None:
    for command, by in ((OPEN_BEN, ANNA), (OPEN_ANNA, BEN)):
        with pytest.raises(Blocked):
            two(between).when(command, by=by)


@pytest.mark.parametrize("blocker", [ANNA, BEN])
def test_no_stranger_hears_of_a_block_by_opening_a_chat(blocker: UserId) -> None:
    standing = Standing(blocked_at={blocker: FIRST_TIME})
    other = BEN if blocker == ANNA else ANNA
    block = ContactBlocked(user_id=blocker, contact_id=other, standing=standing)
    for command, by in ((OPEN_BEN, ANNA), (OPEN_ANNA, BEN)):
        with pytest.raises(NotContacts):
            two(block).when(command, by=by)


@pytest.mark.parametrize("later", [(), (REMOVED,), (BLOCKED_BY_BEN,), (BLOCKED_BY_ANNA,)])
def test_opening_again_gives_the_same_chat_whatever_became_of_the_contact(
    later: tuple[ContactEvent, ...],
) -> None:
    for command, by in ((OPEN_BEN, ANNA), (OPEN_ANNA, BEN)):
        decision = opened(*later).when(command, by=by)
        assert decision == Decision([], Opened(chat_id=CHAT, created=False))


def test_nobody_has_a_direct_chat_with_oneself() -> None:
    with pytest.raises(Invalid) as refusal:
        two().when(OPEN_ANNA, by=ANNA)
    assert refusal.value.field == "user_id"


def test_a_direct_chat_is_with_a_known_user() -> None:
    with pytest.raises(NotFound):
        two().when(OpenDirectChat(user_id=NOBODY), by=ANNA)
    with pytest.raises(NotFound):
        two(contact(ANNA, BEN)).record(deleted(BEN)).when(OPEN_BEN, by=ANNA)


# Saying something in it


@pytest.mark.parametrize("command", SAYING, ids=named)
def test_contacts_say_something(command: Command) -> None:
    assert opened().when(command, by=ANNA).events


@pytest.mark.parametrize("command", SAYING, ids=named)
def test_saying_something_guards_what_is_between_the_two(command: Command) -> None:
    used = opened().used(command, by=ANNA)
    assert used[contact_stream(ANNA, BEN)] == 1
    assert used[user_stream(BEN)] == 1


@pytest.mark.parametrize("command", SAYING, ids=named)
def test_after_removal_nothing_is_said(command: Command) -> None:
    with pytest.raises(NotContacts):
        opened(REMOVED).when(command, by=ANNA)


@pytest.mark.parametrize("command", SAYING, ids=named)
@pytest.mark.parametrize("between", [BLOCKED_BY_ANNA, BLOCKED_BY_BEN], ids=["own", "other's"])
def test_under_a_block_nothing_is_said(command: Command, between: ContactEvent) -> None:
    with pytest.raises(Blocked):
        opened(between).when(command, by=ANNA)


@pytest.mark.parametrize("command", SAYING, ids=named)
def test_to_a_deleted_account_nothing_is_said(command: Command) -> None:
    """Not even in the moment before its contacts are removed."""
    with pytest.raises(NotContacts):
        opened().record(deleted(BEN)).when(command, by=ANNA)


@pytest.mark.parametrize("command", KEEPING, ids=named)
@pytest.mark.parametrize("later", [REMOVED, BLOCKED_BY_ANNA, BLOCKED_BY_BEN])
def test_taking_back_and_reading_need_no_contact(command: Command, later: ContactEvent) -> None:
    assert opened(later).when(command, by=ANNA).events


def test_contacts_again_go_on_in_the_same_chat() -> None:
    assert opened(REMOVED, contact(BEN, ANNA)).when(SEND, by=ANNA).events


@pytest.mark.parametrize("command", [*SAYING, *KEEPING], ids=named)
def test_a_direct_chat_is_there_for_its_two_only(command: Command) -> None:
    with pytest.raises(NotFound):
        opened().when(command, by=CARL)


@pytest.mark.parametrize("by", [ANNA, BEN])
def test_in_a_direct_chat_nobody_deletes_what_the_other_said(by: UserId) -> None:
    number = 2 if by == ANNA else 1
    with pytest.raises(Forbidden):
        opened().when(DeleteMessage(message_id=message_id(number)), by=by)


def test_a_block_is_no_matter_in_groups() -> None:
    """contract.md: it forbids sending in the direct chat, requesting and adding."""
    history = opened(BLOCKED_BY_BEN).record(group(BEN, chat=GROUP))
    assert history.when(SendMessage(chat_id=GROUP, content="hi"), by=ANNA).events
