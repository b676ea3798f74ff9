"""Laws that hold after any history of commands, whoever sends which to whom in what order."""

from itertools import count
from typing import Any

from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from commands import HANDLERS
from commands.add_members import AddMembers
from commands.change_password import ChangePassword
from commands.command import Command
from commands.create_group import CreateGroup
from commands.leave_group import LeaveGroup
from commands.mark_delivered import MarkDelivered
from commands.mark_read import MarkRead
from commands.register_user import RegisterUser
from commands.remove_member import RemoveMember
from commands.send_message import SendMessage
from commands.update_group import UpdateGroup
from commands.update_profile import UpdateProfile
from domain.chat import Chat
from domain.ids import UserId, category, chat_stream
from domain.message import MessageSent
from domain.receipt import Receipt
from domain.state import aggregate_of
from tests.commands.history import History, chat_id, given, group, message_id, people, user_id, uuid

PEOPLE = 5
MAX_COMMANDS = 60

users = st.integers(1, PEOPLE).map(user_id)
strangers_too = st.integers(1, PEOPLE + 1).map(user_id)
chats = st.integers(1, 2).map(chat_id)
messages = st.integers(1, 8).map(message_id)
words = st.sampled_from(["one", "two", "three"])
passwords = st.sampled_from(["correct horse", "battery staple", "short"])
members = st.lists(strangers_too, min_size=1, max_size=PEOPLE)


BY_COMMAND: dict[type[Command], st.SearchStrategy[Command]] = {
    RegisterUser: st.builds(
        RegisterUser, username=words, password=passwords, user_id=strangers_too
    ),
    UpdateProfile: st.builds(UpdateProfile, display_name=st.none() | words),
    ChangePassword: st.builds(ChangePassword, current_password=passwords, new_password=passwords),
    CreateGroup: st.builds(CreateGroup, name=words, member_ids=members, slug=words, chat_id=chats),
    UpdateGroup: st.builds(UpdateGroup, chat_id=chats, name=words, slug=words),
    AddMembers: st.builds(AddMembers, chat_id=chats, user_ids=members),
    RemoveMember: st.builds(RemoveMember, chat_id=chats, user_id=users),
    LeaveGroup: st.builds(LeaveGroup, chat_id=chats),
    SendMessage: st.builds(
        SendMessage,
        chat_id=chats,
        content=words,
        message_id=messages,
        reply_to_id=st.none() | messages,
    ),
    MarkDelivered: st.builds(MarkDelivered, chat_id=chats, up_to_message_id=messages),
    MarkRead: st.builds(MarkRead, chat_id=chats, up_to_message_id=st.none() | messages),
}
commands = st.one_of(list(BY_COMMAND.values()))
steps = st.lists(st.tuples(commands, users), max_size=MAX_COMMANDS)


def begun() -> History:
    everybody = [user_id(number) for number in range(1, PEOPLE + 1)]
    return given(*people(*everybody), group(*everybody[1:]))


def run(history: History, taken: list[tuple[Command, UserId]]) -> None:
    ids = (uuid(0xFFFFFFFF, number) for number in count())
    for command, by in taken:
        history.carry_out(command, by=by, new_id=lambda: next(ids))
        check(history)


def check(history: History) -> None:
    for stream, (version, state) in history.states.items():
        assert version > 0
        if category(stream) == "chat":
            check_chat(state)
        if category(stream) == "receipt":
            assert 0 <= state.read_up_to <= state.delivered_up_to <= len(history.log)


def check_chat(chat: Chat) -> None:
    assert chat.exists
    assert chat.name
    assert chat.slug
    assert set(chat.roles) <= set(chat.joined)
    assert len(set(chat.joined)) == len(chat.joined)
    owners = [user for user, role in chat.roles.items() if role == "owner"]
    # A group without participants is a deleted one; any other has one owner, a participant.
    assert chat.is_deleted == (not chat.roles)
    assert owners == ([] if chat.is_deleted else [chat.owner_id])


@hypothesis_given(steps)
def test_no_history_breaks_a_rule(taken: list[tuple[Command, UserId]]) -> None:
    run(begun(), taken)


@hypothesis_given(steps)
def test_marks_never_move_back(taken: list[tuple[Command, UserId]]) -> None:
    history = begun()
    ids = (uuid(0xFFFFFFFF, number) for number in count())
    for command, by in taken:
        before = receipts(history)
        history.carry_out(command, by=by, new_id=lambda: next(ids))
        for stream, receipt in receipts(history).items():
            earlier = before.get(stream, Receipt())
            assert receipt.delivered_up_to >= earlier.delivered_up_to
            assert receipt.read_up_to >= earlier.read_up_to


def receipts(history: History) -> dict[Any, Receipt]:
    return {
        stream: known.state
        for stream, known in history.states.items()
        if category(stream) == "receipt"
    }


@hypothesis_given(steps, commands, users)
def test_a_decision_is_a_function_of_what_it_is_given(
    taken: list[tuple[Command, UserId]], command: Command, by: UserId
) -> None:
    history = begun()
    run(history, taken)
    outcomes = [history.outcome(command, by=by) for _ in range(2)]
    assert repr(outcomes[0]) == repr(outcomes[1])


@hypothesis_given(steps, commands, users)
def test_deciding_changes_no_state(
    taken: list[tuple[Command, UserId]], command: Command, by: UserId
) -> None:
    history = begun()
    run(history, taken)
    before = repr(history.states)
    history.outcome(command, by=by)
    assert repr(history.states) == before


@hypothesis_given(steps)
def test_the_end_of_a_stream_suffices_where_the_table_says_so(
    taken: list[tuple[Command, UserId]],
) -> None:
    history = begun()
    run(history, taken)
    for stream, known in history.states.items():
        aggregate = aggregate_of(stream)
        if aggregate.last_event_suffices:
            last = [item for item in history.log if item[0].stream == stream][-1]
            assert aggregate.evolve(aggregate.initial, *last) == known.state


@hypothesis_given(steps)
def test_only_participants_of_the_moment_ever_sent(taken: list[tuple[Command, UserId]]) -> None:
    history = begun()
    run(history, taken)
    replayed = History()
    for event, _ in history.log:
        if isinstance(event, MessageSent):
            chat: Chat = replayed.state(chat_stream(event.chat_id))
            assert chat.is_open_to(event.sender_id)
        replayed.record(event)


def test_every_command_takes_part() -> None:
    assert set(BY_COMMAND) == {handler.command for handler in HANDLERS}
