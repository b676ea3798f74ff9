"""Who is in which chat: of the chats that somebody on this process is in, at one position.

A room is folded from its chat's own events. While it is being loaded, what happens in the chat
is kept beside it and folded after. Everybody who ever was in a room stays in its index of
people: their messages are there, and bear the name of the day.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from sys import intern
from typing import NamedTuple

from api.stream.moves import Moves, moves_of
from domain.chat import ChatEvent, DirectChatOpened
from domain.event import Event, Recorded
from domain.ids import ChatId, UserId


class Room:
    """`members` are those who are in it now; `past` those who were."""

    __slots__ = ("is_direct", "members", "past")

    def __init__(self) -> None:
        self.is_direct = False
        self.members: set[UserId] = set()
        self.past: set[UserId] = set()

    def move(self, moves: Moves) -> None:
        joining = {UserId(intern(user_id)) for user_id in moves.joining}
        leaving = self.members if moves.empties else self.members & set(moves.leaving)
        self.past = (self.past | leaving) - joining
        self.members = (self.members - leaving) | joining


class Loading(NamedTuple):
    """A room on its way: `after` the position up to which its history is read."""

    after: int
    meanwhile: list[ChatEvent]


class Rooms:
    """`apply` in log order; the others at any time between."""

    def __init__(self) -> None:
        self._rooms: dict[ChatId, Room] = {}
        self._loading: dict[ChatId, Loading] = {}
        self._of_person: defaultdict[UserId, set[ChatId]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._rooms)

    def get(self, chat_id: ChatId) -> Room | None:
        return self._rooms.get(chat_id)

    def lacks(self, chat_ids: Iterable[ChatId]) -> list[ChatId]:
        """Those that are neither here nor on their way."""
        return [
            chat_id
            for chat_id in chat_ids
            if chat_id not in self._rooms and chat_id not in self._loading
        ]

    def are_loading(self, chat_ids: Iterable[ChatId]) -> bool:
        return any(chat_id in self._loading for chat_id in chat_ids)

    def begin(self, chat_ids: Iterable[ChatId], *, after: int) -> None:
        for chat_id in chat_ids:
            self._loading[chat_id] = Loading(after, [])

    def abandon(self, chat_ids: Iterable[ChatId]) -> None:
        for chat_id in chat_ids:
            self._loading.pop(chat_id, None)

    def finish(self, chat_ids: Iterable[ChatId], history: Iterable[Recorded]) -> None:
        """`history`: the moves in these chats up to where their loading began."""
        rooms = {chat_id: Room() for chat_id in chat_ids}
        for _, _, event in history:
            if isinstance(event, ChatEvent):
                _fold(rooms[event.chat_id], event)
        for chat_id, room in rooms.items():
            loading = self._loading.pop(chat_id, None)
            for event in loading.meanwhile if loading else ():
                _fold(room, event)
            self._rooms[chat_id] = room
            self._index(chat_id, room)

    def apply(self, event: ChatEvent) -> Collection[UserId]:
        """Who is concerned: those in it before or after. Nobody of a room that is not here."""
        loading = self._loading.get(event.chat_id)
        if loading is not None:
            loading.meanwhile.append(event)
            return ()
        room = self._rooms.get(event.chat_id)
        if room is None:
            return ()
        moves = moves_of(event)
        if moves == Moves():
            return room.members
        before = room.members
        _fold(room, event)
        self._index(event.chat_id, room)
        return before | room.members

    def drop(self, chat_ids: Iterable[ChatId]) -> None:
        for chat_id in chat_ids:
            room = self._rooms.pop(chat_id, None)
            for person in room.members | room.past if room else ():
                self._of_person[person].discard(chat_id)
                if not self._of_person[person]:
                    del self._of_person[person]

    def of(self, person: UserId) -> Collection[ChatId]:
        """The rooms that somebody is or was in."""
        return self._of_person.get(person, ())

    def joined_by(self, person: UserId) -> set[ChatId]:
        """The rooms that somebody is in."""
        return {chat_id for chat_id in self.of(person) if person in self._rooms[chat_id].members}

    def who_share(self, person: UserId) -> set[UserId]:
        """Those who are in a room with somebody."""
        found: set[UserId] = set()
        for chat_id in self.of(person):
            room = self._rooms[chat_id]
            if person in room.members:
                found |= room.members
        return found

    def who_see(self, person: UserId) -> set[UserId]:
        """Those who are in a room with somebody, or with what they said."""
        found: set[UserId] = set()
        for chat_id in self.of(person):
            found |= self._rooms[chat_id].members
        return found

    def _index(self, chat_id: ChatId, room: Room) -> None:
        for person in room.members | room.past:
            self._of_person[person].add(chat_id)


def _fold(room: Room, event: Event) -> None:
    if isinstance(event, DirectChatOpened):
        room.is_direct = True
    room.move(moves_of(event))
