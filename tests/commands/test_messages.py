"""send-message, mark-delivered, mark-read (data-model.md, entities 5, 8 and 9)."""

from datetime import timedelta
from typing import Any

import pytest

from commands.command import Command, Decision
from commands.formatting import Metadata, Styles
from commands.mark_delivered import MarkDelivered
from commands.mark_read import MarkRead
from commands.send_message import SendMessage, Sent
from domain.chat import GroupDeleted, MemberLeft, MemberRemoved, MembersAdded
from domain.ids import ChatId, MessageId, UserId, chat_stream, message_stream
from domain.message import MessageSent, SystemMessageSent
from domain.receipt import MessagesDelivered, MessagesRead
from domain.refusals import Conflict, Invalid, NotFound
from tests.commands.history import (
    ANNA,
    BEN,
    CARL,
    CHAT,
    FIRST_TIME,
    NOW,
    OTHER_CHAT,
    History,
    given,
    group,
    message_id,
    new_id,
    people,
    sent,
)


def chat(*messages: MessageSent) -> History:
    """Positions 1 to 3 are the people, 4 and 5 the two chats, 6 on the messages."""
    return given(
        *people(ANNA, BEN, CARL),
        group(BEN),
        group(BEN, chat=OTHER_CHAT, slug="others"),
        *messages,
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
    assert chat().used(send(), by=BEN) == {chat_stream(CHAT): 1, message_stream(message_id(1)): 0}


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


def test_a_message_id_of_a_system_message_is_taken() -> None:
    told = SystemMessageSent(
        message_id=message_id(1), chat_id=CHAT, kind="member_left", actor_id=CARL
    )
    with pytest.raises(Conflict):
        chat().record(told).when(send(), by=BEN)


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


@pytest.mark.parametrize("command", [send(2), read(), read(1), deliver(1)])
def test_only_active_participants_send_and_mark(command: Command) -> None:
    with pytest.raises(NotFound):
        chat(sent(1)).when(command, by=CARL)
    with pytest.raises(NotFound):
        chat(sent(1)).record(MemberLeft(chat_id=CHAT, user_id=BEN)).when(command, by=BEN)
    with pytest.raises(NotFound):
        chat(sent(1)).record(GroupDeleted(chat_id=CHAT, by=ANNA)).when(command, by=BEN)
