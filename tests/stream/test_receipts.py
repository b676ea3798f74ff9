"""What clients say they have: nothing is lost, and nothing is said of what they have not."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.stream.readings import Range
from api.stream.receipts import Marks, Pending
from domain.ids import ChatId, UserId
from tests.commands.history import ANNA, BEN, CHAT, OTHER_CHAT

PEOPLE = (ANNA, BEN)
CHATS = (CHAT, OTHER_CHAT)

chats = st.sampled_from(CHATS)
users = st.sampled_from(PEOPLE)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("sent"), users, chats),
        st.tuples(st.just("sent"), users, chats),
        st.tuples(st.just("received"), users, st.integers(0, 40)),
        st.tuples(st.just("recorded"), users, chats, st.integers(0, 40)),
        st.tuples(st.just("loaded"), users, chats, st.integers(0, 40)),
        st.tuples(st.just("flushed"), st.booleans()),
    ),
    max_size=40,
)


class Followed:
    """Each message by itself. `lacking` is what a user may not have by what is known; `has`
    the position up to which a user's client said that it has everything."""

    def __init__(self) -> None:
        self.pending = Pending()
        self.position = 0
        self.lacking: set[tuple[UserId, ChatId, int]] = set()
        self.has = dict.fromkeys(PEOPLE, 0)
        self.written: list[Marks] = []
        for user_id in PEOPLE:
            self.pending.take_in(user_id)

    def take(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("sent", user_id, chat_id):
                self.position += 1
                self.pending.sent(user_id, chat_id, self.position)
                self.lacking.add((user_id, chat_id, self.position))
            case ("received", user_id, up_to):
                up_to = min(up_to, self.position)
                self.pending.received(user_id, up_to)
                self.has[user_id] = max(self.has[user_id], up_to)
            case ("recorded", user_id, chat_id, up_to):
                up_to = min(up_to, self.position)
                self.pending.recorded(user_id, chat_id, up_to)
                self._marked(user_id, chat_id, 0, up_to)
            case ("loaded", user_id, chat_id, first):
                self._load(user_id, chat_id, min(first, self.position))
            case ("flushed", fails):
                self.flush(fails=fails)

    def _load(self, user_id: UserId, chat_id: ChatId, first: int) -> None:
        """A read model that is behind has what was delivered since."""
        if first:
            self.pending.load(user_id, {chat_id: Range(first, self.position)})
            self.lacking |= {
                (user_id, chat_id, position)
                for position in (first, self.position)
                if position > self.has[user_id]
            }

    def flush(self, *, fails: bool = False) -> None:
        marks = self.pending.take_marks()
        if fails:
            self.pending.put_back(marks)
            return
        self.written.append(marks)
        for chat_id, of_chat in marks.items():
            for user_id, mark in of_chat.items():
                assert mark.user_id == user_id
                assert mark.after < mark.up_to <= self.has[user_id]
                self._marked(user_id, chat_id, mark.after, mark.up_to)

    def _marked(self, user_id: UserId, chat_id: ChatId, after: int, up_to: int) -> None:
        self.lacking = {
            (user, chat, position)
            for user, chat, position in self.lacking
            if (user, chat) != (user_id, chat_id) or not after < position <= up_to
        }


@given(steps)
def test_what_a_client_has_is_written_sooner_or_later_and_nothing_else(
    taken: list[tuple[Any, ...]],
) -> None:
    followed = Followed()
    for step in taken:
        followed.take(step)
    for user_id in PEOPLE:
        followed.take(("received", user_id, followed.position))
    followed.flush()
    assert followed.lacking == set()
    followed.flush()
    assert followed.written[-1] == {}


def test_a_message_that_was_read_elsewhere_is_not_marked_again() -> None:
    pending = Pending()
    pending.take_in(ANNA)
    pending.sent(ANNA, CHAT, 5)
    pending.recorded(ANNA, CHAT, 5)
    pending.received(ANNA, 7)
    assert pending.take_marks() == {}


def test_one_mark_covers_however_many_messages_and_answers() -> None:
    pending = Pending()
    pending.take_in(ANNA)
    for position in range(3, 10):
        pending.sent(ANNA, CHAT, position)
        pending.received(ANNA, position)
    [[mark]] = [list(of_chat.values()) for of_chat in pending.take_marks().values()]
    assert (mark.after, mark.up_to) == (2, 9)


def test_of_who_is_not_here_nothing_is_kept() -> None:
    pending = Pending()
    pending.sent(ANNA, CHAT, 1)
    pending.recorded(ANNA, CHAT, 1)
    pending.load(ANNA, {CHAT: Range(1, 2)})
    pending.received(ANNA, 2)
    assert pending.take_marks() == {}
    pending.take_in(ANNA)
    pending.sent(ANNA, CHAT, 3)
    pending.let_go(ANNA)
    pending.received(ANNA, 3)
    assert pending.take_marks() == {}
    assert vars(pending) == vars(Pending())


def test_what_a_user_said_before_going_is_written_all_the_same() -> None:
    pending = Pending()
    pending.take_in(ANNA)
    pending.sent(ANNA, CHAT, 3)
    pending.received(ANNA, 3)
    pending.let_go(ANNA)
    assert set(pending.take_marks()) == {CHAT}
