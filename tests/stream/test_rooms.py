"""Who is in which chat: however a room was loaded, it is what all of its chat's events say."""

from collections.abc import Iterable
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from api.stream.moves import MOVING_TYPES, moves_of
from api.stream.rooms import Rooms
from domain.chat import (
    ChatEvent,
    DirectChatOpened,
    GroupCreated,
    GroupDeleted,
    GroupUpdated,
    MemberLeft,
    MemberRemoved,
    MembersAdded,
    RoleChanged,
)
from domain.event import Recorded
from domain.ids import ChatId, UserId
from tests.commands.history import (
    ANNA,
    BEN,
    CARL,
    CHAT,
    DORA,
    FIRST_TIME,
    OTHER_CHAT,
    direct,
    group,
)

CHATS = (CHAT, OTHER_CHAT)
PEOPLE = (ANNA, BEN, CARL, DORA)

people = st.sampled_from(PEOPLE)
some_people = st.lists(people, min_size=1, max_size=3, unique=True)
chats = st.sampled_from(CHATS)
events: st.SearchStrategy[ChatEvent] = st.one_of(
    st.builds(MembersAdded, chat_id=chats, by=people, user_ids=some_people),
    st.builds(MemberRemoved, chat_id=chats, by=people, user_id=people),
    st.builds(MemberLeft, chat_id=chats, user_id=people),
    st.builds(GroupDeleted, chat_id=chats, by=people),
    st.builds(
        GroupCreated,
        chat_id=chats,
        owner_id=people,
        member_ids=some_people,
        name=st.just("x"),
        slug=st.just("x"),
    ),
    st.builds(RoleChanged, chat_id=chats, by=people, user_id=people, role=st.just("admin")),
)


class Loads(NamedTuple):
    chat_id: ChatId


class Loaded(NamedTuple):
    chat_id: ChatId


class Fails(NamedTuple):
    chat_id: ChatId


class Dropped(NamedTuple):
    chat_id: ChatId


steps = st.lists(
    st.one_of(
        events,
        events,
        st.builds(Loads, chats),
        st.builds(Loaded, chats),
        st.builds(Fails, chats),
        st.builds(Dropped, chats),
    ),
    max_size=40,
)


class Naive:
    """Folds the whole log of a chat each time it is asked."""

    def __init__(self) -> None:
        self.log: list[ChatEvent] = []

    def members(self, chat_id: ChatId) -> set[UserId]:
        inside: set[UserId] = set()
        for event in self.log:
            if event.chat_id == chat_id:
                inside = self._after(inside, event)
        return inside

    def ever(self, chat_id: ChatId) -> set[UserId]:
        return {
            user_id
            for event in self.log
            if event.chat_id == chat_id
            for user_id in moves_of(event).joining
        }

    def _after(self, inside: set[UserId], event: ChatEvent) -> set[UserId]:
        match event:
            case GroupCreated():
                return inside | {event.owner_id, *event.member_ids}
            case MembersAdded() | DirectChatOpened():
                return inside | set(event.user_ids)
            case MemberRemoved() | MemberLeft():
                return inside - {event.user_id}
            case GroupDeleted():
                return set()
            case _:
                return inside


class Loader:
    """Takes steps with rooms; `loading` remembers where each load began."""

    def __init__(self) -> None:
        self.rooms = Rooms()
        self.naive = Naive()
        self.loading: dict[ChatId, int] = {}

    def take(self, step: ChatEvent | Loads | Loaded | Fails | Dropped) -> None:
        match step:
            case Loads() if self.rooms.lacks([step.chat_id]):
                self.loading[step.chat_id] = len(self.naive.log)
                self.rooms.begin([step.chat_id], after=len(self.naive.log))
            case Loaded() if step.chat_id in self.loading:
                history = self._history(step.chat_id, self.loading.pop(step.chat_id))
                self.rooms.finish([step.chat_id], history)
            case Fails():
                self.loading.pop(step.chat_id, None)
                self.rooms.abandon([step.chat_id])
            case Dropped():
                self.rooms.drop([step.chat_id])
            case ChatEvent():
                self._happens(step)
            case _:
                pass

    def _history(self, chat_id: ChatId, up_to: int) -> list[Recorded]:
        return [
            Recorded(number, FIRST_TIME, event)
            for number, event in enumerate(self.naive.log[:up_to], 1)
            if event.chat_id == chat_id and event.type in MOVING_TYPES
        ]

    def _happens(self, event: ChatEvent) -> None:
        before = self.naive.members(event.chat_id)
        self.naive.log.append(event)
        after = self.naive.members(event.chat_id)
        is_here = self.rooms.get(event.chat_id) is not None
        assert set(self.rooms.apply(event)) == (before | after if is_here else set())

    @property
    def here(self) -> list[ChatId]:
        return [chat_id for chat_id in CHATS if self.rooms.get(chat_id)]


@given(steps)
def test_a_room_is_what_its_chat_says_however_it_came_here(
    taken: list[ChatEvent | Loads | Loaded | Fails | Dropped],
) -> None:
    loader = Loader()
    rooms, naive = loader.rooms, loader.naive
    for step in taken:
        loader.take(step)
        for chat_id in loader.here:
            room = rooms.get(chat_id)
            assert room
            assert room.members == naive.members(chat_id)
            assert room.past == naive.ever(chat_id) - room.members
        for person in PEOPLE:
            ever = [chat_id for chat_id in loader.here if person in naive.ever(chat_id)]
            now = [chat_id for chat_id in ever if person in naive.members(chat_id)]
            assert set(rooms.of(person)) == set(ever)
            assert rooms.who_see(person) == union(naive.members(chat_id) for chat_id in ever)
            assert rooms.who_share(person) == union(naive.members(chat_id) for chat_id in now)
        assert len(rooms) == len(loader.here)
        assert rooms.are_loading(CHATS) == bool(loader.loading)
        assert set(rooms.lacks(CHATS)) == set(CHATS) - set(loader.here) - set(loader.loading)


def union(sets: Iterable[set[UserId]]) -> set[UserId]:
    return set().union(*sets)


def test_of_what_happens_in_a_chat_of_nobody_here_nobody_hears() -> None:
    assert set(Rooms().apply(group(BEN))) == set()


def test_who_leaves_is_told_of_it_and_of_nothing_more() -> None:
    rooms = Rooms()
    rooms.finish([CHAT], [Recorded(1, FIRST_TIME, group(BEN, CARL))])
    assert set(rooms.apply(MemberLeft(chat_id=CHAT, user_id=CARL))) == {ANNA, BEN, CARL}
    renamed = GroupUpdated(chat_id=CHAT, by=ANNA, name="x", slug="x", avatar_url=None)
    assert set(rooms.apply(renamed)) == {ANNA, BEN}


def test_a_room_of_two_knows_that_it_is_one() -> None:
    rooms = Rooms()
    opened = direct(ANNA, BEN)
    history = [Recorded(1, FIRST_TIME, opened), Recorded(2, FIRST_TIME, group(BEN))]
    rooms.finish([opened.chat_id, CHAT], history)
    one, other = rooms.get(opened.chat_id), rooms.get(CHAT)
    assert one
    assert other
    assert (one.is_direct, other.is_direct) == (True, False)


def test_a_dropped_room_leaves_nothing_behind() -> None:
    rooms = Rooms()
    left = [group(BEN, CARL), MemberLeft(chat_id=CHAT, user_id=CARL)]
    rooms.finish([CHAT], [Recorded(n, FIRST_TIME, event) for n, event in enumerate(left, 1)])
    rooms.drop([CHAT, OTHER_CHAT])
    assert vars(rooms) == vars(Rooms())
