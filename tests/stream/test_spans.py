"""In which chats a user was, at each position: compared with a fold of every move there was."""

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from api.stream.spans import OwnMove, Spans
from domain.ids import ChatId
from tests.commands.history import CHAT, OTHER_CHAT, chat_id

CHATS = (CHAT, OTHER_CHAT, chat_id(3))
LENGTH = 14


class Log(NamedTuple):
    """At each position from 1 on a user goes into or out of a chat, or somebody else does."""

    moves: list[OwnMove]

    def is_in(self, chat_id: ChatId, position: int) -> bool:
        """After what happened at the position."""
        before = [m for m in self.moves if m.chat_id == chat_id and m.position <= position]
        return bool(before) and before[-1].joins


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Each chat's moves are by turns in and out."""
    where = draw(st.lists(st.none() | st.sampled_from(CHATS), min_size=LENGTH, max_size=LENGTH))
    moves: list[OwnMove] = []
    inside: set[ChatId] = set()
    for position, chat in enumerate(where, 1):
        if chat is not None:
            inside ^= {chat}
            moves.append(OwnMove(position, chat, joins=chat in inside))
    return Log(moves)


places = st.integers(0, LENGTH)


def known(log: Log, *, begin: int, at: int, up_to: int = LENGTH) -> Spans:
    """As it is read: a read model that is at `at`, and the moves from the earlier place on."""
    was_in = {chat for chat in CHATS if log.is_in(chat, at)}
    moves = [one for one in log.moves if min(begin, at) < one.position <= up_to]
    return Spans(was_in, at=at, moves=moves)


def check(log: Log, spans: Spans, *, begin: int) -> None:
    for chat in CHATS:
        for position in range(begin + 1, LENGTH + 1):
            # Whoever leaves sees it, and whoever joins sees that.
            sees = log.is_in(chat, position - 1) or log.is_in(chat, position)
            assert spans.shows(chat, position) == sees, (chat, position)
            assert not sees or chat in spans.chats


@given(logs(), places, places)
def test_a_user_sees_of_a_chat_what_happens_from_joining_to_leaving(
    log: Log, begin: int, at: int
) -> None:
    check(log, known(log, begin=begin, at=at), begin=begin)


@given(logs(), places, places, places)
def test_moves_that_are_learned_later_are_the_same_as_known_from_the_start(
    log: Log, begin: int, at: int, head: int
) -> None:
    head = max(head, begin, at)
    spans = known(log, begin=begin, at=at, up_to=head)
    spans.add([one for one in log.moves if one.position > head])
    check(log, spans, begin=begin)


def test_without_moves_all_is_as_the_read_model_says() -> None:
    spans = Spans({CHAT}, at=5, moves=[])
    assert [spans.shows(CHAT, position) for position in (1, 5, 9)] == [True] * 3
    assert not spans.shows(OTHER_CHAT, 9)
