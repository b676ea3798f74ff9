"""send-message, edit-message, delete-message, reactions and marks, in groups.

Rules: data-model.md, entities 5, 7, 8 and 9; contract.md, "Group rights".
"""

from datetime import timedelta
from typing import Any

import pytest

from commands.add_reaction import MAX_REACTIONS_PER_USER, AddReaction
from commands.command import Command, Decision
from commands.delete_message import DeleteMessage
from commands.edit_message import EditMessage
from commands.formatting import Metadata, Styles
from commands.mark_delivered import MarkDelivered
from commands.mark_read import MarkRead
from commands.remove_reaction import RemoveReaction
from commands.send_message import SendMessage, Sent
from domain.chat import GroupDeleted, MemberLeft, MemberRemoved, MembersAdded, RoleChanged
from domain.ids import ChatId, MessageId, UserId, chat_stream, message_stream, user_stream
from domain.message import (
    MessageDeleted,
    MessageEdited,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
    SystemMessageSent,
)
from domain.receipt import MessagesDelivered, MessagesRead
from domain.refusals import Conflict, Forbidden, Invalid, NotFound
from tests.commands.history import (
    ANNA,
    BEN,
    CARL,
    CHAT,
    DORA,
    FIRST_TIME,
    NOW,
    OTHER_CHAT,
    History,
    deleted,
    given,
    group,
    message_id,
    new_id,
    people,
    registered,
    sent,
)


def chat(*messages: MessageSent) -> History:
    """Anna owns the two chats. Positions 1 to 3 are the people, 4 and 5 the chats, 6 on the
    messages."""
    return given(
        *people(ANNA, BEN, CARL),
        group(BEN),
        group(BEN, chat=OTHER_CHAT, slug="others"),
        *messages,
    )


def with_admin(history: History, admin: UserId) -> History:
    return history.record(
        registered(admin),
        MembersAdded(chat_id=CHAT, by=ANNA, user_ids=[admin]),
        RoleChanged(chat_id=CHAT, by=ANNA, user_id=admin, role="admin"),
    )


def send(number: int | None = 1, **fields: Any) -> SendMessage:
    given_id = message_id(number) if number else None
    return SendMessage(**{"chat_id": CHAT, "content": "hello", "message_id": given_id} | fields)


def styled(content: str = "hello", **styles: Any) -> SendMessage:
    return send(content=content, metadata=Metadata(formatting=Styles(**styles)))


# send-message


def test_a_participant_sends() -> None:
    assert chat().when(send(), by=BEN) == Decision(
        [MessageSent(message_id=message_id(1), chat_id=CHAT, sender_id=BEN, content="hello")],
        Sent(message_id=message_id(1), created_at=NOW),
    )


def test_an_id_is_made_for_a_message_that_brings_none() -> None:
    answer = chat().when(send(None), by=BEN).answer
    assert answer == Sent(message_id=MessageId(new_id(0)), created_at=NOW)


def test_sending_guards_the_membership_and_that_the_message_is_new() -> None:
    assert chat().used(send(), by=BEN) == {
        chat_stream(CHAT): 1,
        user_stream(BEN): 1,
        message_stream(message_id(1)): 0,
    }


def test_sending_writes_to_no_stream_but_its_own() -> None:
    assert [event.stream for event in chat().when(send(), by=BEN).events] == [
        message_stream(message_id(1))
    ]


def test_a_removed_member_can_not_send_until_added_again() -> None:
    history = chat().record(MemberRemoved(chat_id=CHAT, by=ANNA, user_id=BEN))
    with pytest.raises(NotFound):
        history.when(send(), by=BEN)
    history.record(MembersAdded(chat_id=CHAT, by=ANNA, user_ids=[BEN]))
    assert history.when(send(), by=BEN).events


def test_formatting_is_kept_by_style() -> None:
    [event] = chat().when(styled(bold=[[0, 5], [1, 2]], code=[[4, 5]]), by=BEN).events
    assert isinstance(event, MessageSent)
    assert event.formatting == {"bold": [(0, 5), (1, 2)], "code": [(4, 5)]}


@pytest.mark.parametrize("metadata", [Metadata(), Metadata(formatting=Styles())])
def test_formatting_may_be_empty(metadata: Metadata) -> None:
    [event] = chat().when(send(metadata=metadata), by=BEN).events
    assert isinstance(event, MessageSent)
    assert event.formatting == {}


@pytest.mark.parametrize("outside", [[0, 6], [5, 6], [3, 3], [4, 2]])
def test_a_range_outside_the_content_is_refused(outside: list[int]) -> None:
    with pytest.raises(Invalid) as refusal:
        chat().when(styled(italic=[[0, 1], outside]), by=BEN)
    assert refusal.value.field == "metadata.formatting.italic"


def test_ranges_count_characters_not_bytes() -> None:
    assert chat().when(styled("日本語", underline=[[0, 3]]), by=BEN).events
    with pytest.raises(Invalid):
        chat().when(styled("日本語", strikethrough=[[0, 4]]), by=BEN)


def test_a_reply_names_a_message_of_the_same_chat() -> None:
    [event] = chat(sent(1)).when(send(2, reply_to_id=message_id(1)), by=ANNA).events
    assert isinstance(event, MessageSent)
    assert event.reply_to_id == message_id(1)


def test_a_system_message_can_be_replied_to() -> None:
    told = SystemMessageSent(
        message_id=message_id(1), chat_id=CHAT, kind="member_left", actor_id=CARL
    )
    assert chat().record(told).when(send(2, reply_to_id=message_id(1)), by=ANNA).events


@pytest.mark.parametrize("number", [1, 2, 9], ids=["of another chat", "itself", "of none"])
def test_a_reply_to_no_message_of_the_chat_is_refused(number: int) -> None:
    with pytest.raises(NotFound):
        chat(sent(1, chat=OTHER_CHAT)).when(send(2, reply_to_id=message_id(number)), by=ANNA)


def test_sending_again_answers_as_at_first() -> None:
    first = Sent(message_id=message_id(1), created_at=FIRST_TIME + timedelta(seconds=6))
    assert chat(sent(1)).when(send(), by=BEN) == Decision([], first, repeats=6)


def test_a_sender_who_left_meanwhile_is_still_told_that_it_was_sent() -> None:
    history = chat(sent(1)).record(MemberLeft(chat_id=CHAT, user_id=BEN))
    assert history.when(send(), by=BEN).events == []


@pytest.mark.parametrize(
    ("again", "by"),
    [
        (send(content="other"), BEN),
        (send(chat_id=OTHER_CHAT), BEN),
        (send(reply_to_id=message_id(2)), BEN),
        (styled(bold=[[0, 1]]), BEN),
        (send(), ANNA),
    ],
)
def test_a_message_id_is_not_used_twice_with_other_content(again: SendMessage, by: UserId) -> None:
    with pytest.raises(Conflict):
        chat(sent(1)).when(again, by=by)


def test_who_is_not_in_a_chat_does_not_hear_which_ids_are_taken() -> None:
    with pytest.raises(NotFound):
        chat(sent(1)).when(send(content="guessed"), by=DORA)


def test_a_message_id_of_a_system_message_is_taken() -> None:
    told = SystemMessageSent(
        message_id=message_id(1), chat_id=CHAT, kind="member_left", actor_id=CARL
    )
    with pytest.raises(Conflict):
        chat().record(told).when(send(), by=BEN)


# edit-message


def edit(number: int = 1, content: str = "hello again", **styles: Any) -> EditMessage:
    metadata = Metadata(formatting=Styles(**styles)) if styles else None
    return EditMessage(message_id=message_id(number), content=content, metadata=metadata)


def edited(content: str = "hello again", **formatting: Any) -> MessageEdited:
    return MessageEdited(
        message_id=message_id(1),
        chat_id=CHAT,
        sender_id=BEN,
        content=content,
        formatting=formatting,
    )


def message_deleted(number: int = 1, by: UserId = BEN) -> MessageDeleted:
    return MessageDeleted(message_id=message_id(number), chat_id=CHAT, by=by, sent_position=6)


def test_the_sender_says_it_otherwise() -> None:
    history = chat(sent(1))
    assert history.when(edit(), by=BEN) == Decision([edited()])
    assert history.when(edit(bold=[[0, 5]]), by=BEN).events == [edited(bold=[(0, 5)])]


def test_an_edit_writes_to_the_messages_own_stream_and_guards_the_membership() -> None:
    assert chat(sent(1)).used(edit(), by=BEN) == {
        message_stream(message_id(1)): 1,
        chat_stream(CHAT): 1,
        user_stream(BEN): 1,
    }


@pytest.mark.parametrize("by", [ANNA, DORA])
def test_nobody_edits_what_another_sent(by: UserId) -> None:
    with pytest.raises(Forbidden):
        with_admin(chat(sent(1)), DORA).when(edit(), by=by)


def test_an_edit_that_says_the_same_is_no_event() -> None:
    history = chat(sent(1))
    assert history.when(edit(content="hello"), by=BEN) == Decision([])
    history.record(edited(bold=[(0, 5)]))
    assert history.when(edit(bold=[[0, 5]]), by=BEN) == Decision([])
    assert history.when(edit(content="hello"), by=BEN).events == [edited("hello")]


def test_an_edit_without_metadata_makes_the_text_plain() -> None:
    history = chat(sent(1)).record(edited(bold=[(0, 5)]))
    assert history.when(edit(), by=BEN).events == [edited()]


def test_an_edits_ranges_are_inside_its_own_content() -> None:
    with pytest.raises(Invalid) as refusal:
        chat(sent(1)).when(edit(content="hi", code=[[0, 3]]), by=BEN)
    assert refusal.value.field == "metadata.formatting.code"


def test_a_deleted_message_is_not_edited() -> None:
    with pytest.raises(Conflict):
        chat(sent(1)).record(message_deleted()).when(edit(), by=BEN)


def test_an_edited_message_sent_again_is_compared_with_what_was_sent() -> None:
    history = chat(sent(1)).record(edited())
    assert history.when(send(), by=BEN).repeats == 6
    with pytest.raises(Conflict):
        history.when(send(content="hello again"), by=BEN)


# delete-message


def delete(number: int = 1) -> DeleteMessage:
    return DeleteMessage(message_id=message_id(number))


@pytest.mark.parametrize("by", [BEN, ANNA, DORA], ids=["sender", "owner", "admin"])
def test_a_message_is_deleted_by_its_sender_the_owner_or_an_admin(by: UserId) -> None:
    history = with_admin(chat(sent(1)), DORA)
    assert history.when(delete(), by=by) == Decision([message_deleted(by=by)])


def test_an_admin_deletes_the_owners_message() -> None:
    history = with_admin(chat(sent(1, by=ANNA)), DORA)
    assert history.when(delete(), by=DORA).events


def test_a_member_deletes_no_message_of_another() -> None:
    with pytest.raises(Forbidden):
        chat(sent(1, by=ANNA)).when(delete(), by=BEN)


def test_a_message_is_deleted_once() -> None:
    history = chat(sent(1)).record(message_deleted())
    assert history.when(delete(), by=BEN) == Decision([])


def test_a_deleted_message_can_be_replied_to_and_marked() -> None:
    history = chat(sent(1)).record(message_deleted())
    assert history.when(send(2, reply_to_id=message_id(1)), by=ANNA).events
    assert history.when(read(1), by=ANNA).events


# add-reaction and remove-reaction


def react(emoji: str = "👍", number: int = 1) -> AddReaction:
    return AddReaction(message_id=message_id(number), emoji=emoji)


def unreact(emoji: str = "👍", number: int = 1) -> RemoveReaction:
    return RemoveReaction(message_id=message_id(number), emoji=emoji)


def added(emoji: str = "👍", by: UserId = ANNA) -> ReactionAdded:
    return ReactionAdded(message_id=message_id(1), chat_id=CHAT, user_id=by, emoji=emoji)


def removed(emoji: str = "👍", by: UserId = ANNA) -> ReactionRemoved:
    return ReactionRemoved(message_id=message_id(1), chat_id=CHAT, user_id=by, emoji=emoji)


@pytest.mark.parametrize("by", [ANNA, BEN])
def test_a_participant_reacts_also_to_their_own(by: UserId) -> None:
    assert chat(sent(1)).when(react(), by=by) == Decision([added(by=by)])


def test_several_different_reactions_are_taken_but_none_twice() -> None:
    history = chat(sent(1)).record(added())
    assert history.when(react(), by=ANNA) == Decision([])
    assert history.when(react(":tada:"), by=ANNA).events == [added(":tada:")]
    assert history.when(react(), by=BEN).events == [added(by=BEN)]


def test_a_user_has_at_most_ten_reactions_to_a_message() -> None:
    history = chat(sent(1)).record(
        *(added(f":{number}:") for number in range(MAX_REACTIONS_PER_USER - 1))
    )
    history.record(*history.when(react(), by=ANNA).events)
    with pytest.raises(Conflict):
        history.when(react("🎉"), by=ANNA)
    assert history.when(react(), by=ANNA).events == [], "one that is there is no eleventh"
    assert history.when(react("🎉"), by=BEN).events, "each user has ten of their own"
    history.record(removed())
    assert history.when(react("🎉"), by=ANNA).events


def test_a_reaction_is_taken_back_by_who_made_it() -> None:
    history = chat(sent(1)).record(added())
    assert history.when(unreact(), by=ANNA) == Decision([removed()])
    assert history.when(unreact(), by=BEN) == Decision([])
    assert history.when(unreact("🎉"), by=ANNA) == Decision([])
    history.record(removed())
    assert history.when(unreact(), by=ANNA) == Decision([])
    assert history.when(react(), by=ANNA).events == [added()]


def test_a_deleted_message_takes_no_reactions_and_has_none() -> None:
    history = chat(sent(1)).record(added(), message_deleted())
    with pytest.raises(Conflict):
        history.when(react("🎉"), by=ANNA)
    assert history.when(unreact(), by=ANNA) == Decision([])


def test_what_the_group_itself_tells_is_neither_edited_nor_deleted_nor_reacted_to() -> None:
    told = SystemMessageSent(
        message_id=message_id(1), chat_id=CHAT, kind="member_left", actor_id=ANNA
    )
    for command in (edit(), delete(), react()):
        with pytest.raises(Forbidden):
            chat().record(told).when(command, by=ANNA)
    assert chat().record(told).when(unreact(), by=ANNA) == Decision([])


@pytest.mark.parametrize("command", [react("no"), unreact("no")])
def test_a_reaction_is_an_emoji(command: Command) -> None:
    with pytest.raises(Invalid) as refusal:
        chat(sent(1)).when(command, by=ANNA)
    assert refusal.value.field == "emoji"


# mark-delivered and mark-read


def read(number: int | None = None, chat_id: ChatId = CHAT) -> MarkRead:
    return MarkRead(chat_id=chat_id, up_to_message_id=message_id(number) if number else None)


def deliver(number: int, chat_id: ChatId = CHAT) -> MarkDelivered:
    return MarkDelivered(chat_id=chat_id, up_to_message_id=message_id(number))


def is_read(up_to: int, *, delivered_up_to: int | None = None) -> MessagesRead:
    return MessagesRead(
        chat_id=CHAT,
        user_id=ANNA,
        delivered_up_to=up_to if delivered_up_to is None else delivered_up_to,
        read_up_to=up_to,
    )


def is_delivered(up_to: int, *, read_up_to: int = 0) -> MessagesDelivered:
    return MessagesDelivered(
        chat_id=CHAT, user_id=ANNA, delivered_up_to=up_to, read_up_to=read_up_to
    )


def test_a_mark_goes_up_to_the_position_of_the_message() -> None:
    history = chat(sent(1), sent(2), sent(3))
    assert history.when(deliver(2), by=ANNA) == Decision([is_delivered(7)])
    assert history.when(read(2), by=ANNA) == Decision([is_read(7)])


def test_what_is_read_is_delivered() -> None:
    history = chat(sent(1), sent(2)).record(is_delivered(6))
    assert history.when(read(2), by=ANNA).events == [is_read(7)]


def test_reading_less_than_is_delivered_keeps_the_delivered_mark() -> None:
    history = chat(sent(1), sent(2)).record(is_delivered(7))
    assert history.when(read(1), by=ANNA).events == [is_read(6, delivered_up_to=7)]


def test_delivery_keeps_the_read_mark() -> None:
    history = chat(sent(1), sent(2)).record(is_read(6))
    assert history.when(deliver(2), by=ANNA).events == [is_delivered(7, read_up_to=6)]


@pytest.mark.parametrize("number", [1, 2])
def test_marks_never_move_back(number: int) -> None:
    history = chat(sent(1), sent(2)).record(is_read(7))
    assert history.when(deliver(number), by=ANNA) == Decision([])
    assert history.when(read(number), by=ANNA) == Decision([])


def test_by_default_all_that_others_sent_is_read() -> None:
    history = chat(sent(1), sent(2), sent(3, by=ANNA), sent(4, chat=OTHER_CHAT))
    assert history.when(read(), by=ANNA).events == [is_read(7)]


def test_in_a_chat_without_others_messages_there_is_nothing_to_read() -> None:
    assert chat(sent(1, by=ANNA)).when(read(), by=ANNA) == Decision([])


def test_marks_are_of_one_user_in_one_chat() -> None:
    history = chat(sent(1)).record(is_read(6))
    [bens] = history.when(read(1), by=BEN).events
    assert isinstance(bens, MessagesRead)
    assert (bens.user_id, bens.read_up_to) == (BEN, 6)


@pytest.mark.parametrize("mark", [read(1), deliver(1), read(9), deliver(9)])
def test_a_mark_names_a_message_of_the_chat(mark: Command) -> None:
    with pytest.raises(NotFound):
        chat(sent(1, chat=OTHER_CHAT)).when(mark, by=ANNA)


# Only active participants

ABOUT_A_MESSAGE: list[Command] = [edit(), delete(), react(), unreact()]
ALL_COMMANDS: list[Command] = [send(2), read(), read(1), deliver(1), *ABOUT_A_MESSAGE]


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_only_active_participants_send_react_mark_and_delete(command: Command) -> None:
    with pytest.raises(NotFound):
        chat(sent(1)).when(command, by=CARL)
    with pytest.raises(NotFound):
        chat(sent(1)).record(MemberLeft(chat_id=CHAT, user_id=BEN)).when(command, by=BEN)
    with pytest.raises(NotFound):
        chat(sent(1)).record(GroupDeleted(chat_id=CHAT, by=ANNA)).when(command, by=BEN)


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_nothing_of_a_deleted_account_comes_after_it(command: Command) -> None:
    with pytest.raises(NotFound):
        chat(sent(1)).record(deleted(BEN)).when(command, by=BEN)


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_every_command_guards_the_senders_account(command: Command) -> None:
    """So that nothing can land after its deletion, whichever process took it."""
    assert user_stream(BEN) in chat(sent(1)).used(command, by=BEN)


@pytest.mark.parametrize("command", ABOUT_A_MESSAGE)
def test_what_a_stranger_may_not_know_looks_like_what_is_not(command: Command) -> None:
    with pytest.raises(NotFound) as unknown:
        chat().when(command, by=CARL)
    with pytest.raises(NotFound) as foreign:
        chat(sent(1)).when(command, by=CARL)
    assert str(unknown.value) == str(foreign.value)
