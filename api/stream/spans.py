"""In which chats a user was, at each position of a range of the log.

What is known is where the user was at one position (from a read model), and each move of theirs
from the range's begin on. Whoever leaves sees their leaving, and nothing after it.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from domain.ids import ChatId


class OwnMove(NamedTuple):
    """The user's own."""

    position: int
    chat_id: ChatId
    joins: bool


class Spans:
    """Answers for positions after `begin` only; `was_in` are the chats at position `at`."""

    def __init__(self, was_in: set[ChatId], *, at: int, moves: Iterable[OwnMove]) -> None:
        self._was_in = was_in
        self._at = at
        self._moves: defaultdict[ChatId, list[OwnMove]] = defaultdict(list)
        self.add(moves)

    def add(self, moves: Iterable[OwnMove]) -> None:
        """Later ones than those that are known."""
        for move in sorted(moves):
            self._moves[move.chat_id].append(move)

    @property
    def chats(self) -> list[ChatId]:
        """All that the user may have been in at some position of the range, or is in after it."""
        return list(self._was_in | self._moves.keys())

    def shows(self, chat_id: ChatId, position: int) -> bool:
        """Whether the user saw what happened there at that position."""
        moves = self._moves.get(chat_id)
        if not moves:
            return chat_id in self._was_in
        before = bisect_right(moves, position, key=lambda move: move.position)
        if before:
            last = moves[before - 1]
            return last.joins or last.position == position
        # Nothing before: the user was where the first move finds them, unless `at` is nearer.
        first = moves[0]
        return not first.joins if first.position <= self._at else chat_id in self._was_in
