"""Given events, when a command, then events or a refusal: the log and its runner, in memory.

`given(...)` records events; `.when(command, by=user)` decides on them and answers the decision,
or raises the refusal. What the decision misses is fetched as the executor does it. Each one
is made twice, from equal contexts, and must come out the same.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from commands import BY_TYPE
from commands.command import (
    Command,
    Context,
    Decision,
    Fact,
    Missing,
    NewestMessage,
    PasswordHash,
    PasswordMatch,
    Versioned,
    View,
)
from domain.attachment import AttachmentUploaded
from domain.chat import DirectChatOpened, GroupCreated
from domain.contact import ContactAccepted, Standing
from domain.event import Event, Place
from domain.ids import AttachmentId, ChatId, MessageId, StreamId, UserId, direct_chat_id
from domain.message import MessageSent
from domain.refusals import Refusal
from domain.state import aggregate_of
from domain.user import AccountDeleted, UserRegistered

FIRST_TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NOW = FIRST_TIME + timedelta(days=1)
MAX_LOADS = 16


def uuid(kind: int, number: int) -> str:
    return f"{kind:08x}-0000-7000-8000-{number:012x}"


def user_id(number: int) -> UserId:
    return UserId(uuid(1, number))


def chat_id(number: int) -> ChatId:
    return ChatId(uuid(2, number))


def message_id(number: int) -> MessageId:
    return MessageId(uuid(3, number))


def attachment_id(number: int) -> AttachmentId:
    return AttachmentId(uuid(4, number))


def new_id(ordinal: int) -> str:
    """The n-th id that a decision of `when` makes."""
    return uuid(0xFFFFFFFF, ordinal)


ANNA, BEN, CARL, DORA, NOBODY = (user_id(number) for number in range(1, 6))
CHAT, OTHER_CHAT = chat_id(1), chat_id(2)
MESSAGE = message_id(1)
PASSWORD = "correct horse"


def hashed(password: str) -> str:
    return f"hash of {password}"


def registered(user: UserId, name: str = "") -> UserRegistered:
    name = name or f"user_{int(user[-4:], 16)}"
    return UserRegistered(
        user_id=user, username=name, display_name=name, password_hash=hashed(PASSWORD)
    )


def group(
    *member_ids: UserId, owner: UserId = ANNA, chat: ChatId = CHAT, slug: str = "friends"
) -> GroupCreated:
    return GroupCreated(
        chat_id=chat, owner_id=owner, member_ids=list(member_ids), name="Friends", slug=slug
    )


def sent(number: int, by: UserId = BEN, chat: ChatId = CHAT, content: str = "hello") -> MessageSent:
    return MessageSent(message_id=message_id(number), chat_id=chat, sender_id=by, content=content)


def uploaded(
    number: int, by: UserId = BEN, chat: ChatId = CHAT, message: MessageId = MESSAGE
) -> AttachmentUploaded:
    """An image that waits to be sent, in message 1 unless another is said."""
    return AttachmentUploaded(
        attachment_id=attachment_id(number),
        chat_id=chat,
        message_id=message,
        sender_id=by,
        file_name="cat.png",
        file_type="image/png",
        file_size=1_000,
        width=40,
        height=30,
        store="https://objects.example.org/messenger",
    )


def contact(one: UserId, other: UserId, *, blocked_by: Sequence[UserId] = ()) -> ContactAccepted:
    """The two are contacts, `one` has asked; some of them block the other."""
    standing = Standing(one, FIRST_TIME, FIRST_TIME, dict.fromkeys(blocked_by, FIRST_TIME))
    return ContactAccepted(user_id=other, contact_id=one, standing=standing)


def direct(one: UserId, other: UserId) -> DirectChatOpened:
    pair = sorted((one, other))
    slug = "direct-" + "-".join(pair)
    return DirectChatOpened(chat_id=direct_chat_id(one, other), by=one, user_ids=pair, slug=slug)


def deleted(user: UserId) -> AccountDeleted:
    return AccountDeleted(user_id=user, erase_messages=False)


class History:
    """Recorded events, with the states folded from them."""

    def __init__(self) -> None:
        self.log: list[tuple[Event, Place]] = []
        self.states: dict[StreamId, Versioned] = {}
        self.claims: dict[tuple[str, str], StreamId] = {}

    def record(self, *events: Event) -> "History":
        for event in events:
            place = self._next_place()
            version, state = self._known(event.stream)
            evolved = aggregate_of(event.stream).evolve(state, event, place)
            self.states[event.stream] = Versioned(version + 1, evolved)
            self.log.append((event, place))
        return self

    def when(self, command: Command, *, by: UserId | None) -> Decision:
        first, second = (self.outcome(command, by=by) for _ in range(2))
        if isinstance(first, Refusal):
            assert str(first) == str(second)
            raise first
        assert first == second, "a decision is a function of what it is given"
        return first

    def carry_out(self, command: Command, *, by: UserId | None, new_id: Callable[[], str]) -> bool:
        """Decides and records; tells whether the command was accepted."""
        context = Context(by, self._next_place().recorded_at, new_id)
        _, decision = self._decide(command, context)
        if isinstance(decision, Refusal) or not self._claim(decision):
            return False
        self.record(*decision.events)
        return True

    def _claim(self, decision: Decision) -> bool:
        """As the append does it: what another stream holds can't be had."""
        if any(
            self.claims.get((scope, value), holder) != holder
            for scope, value, holder in decision.claims
        ):
            return False
        for scope, value, holder in decision.releases:
            if self.claims.get((scope, value)) == holder:
                del self.claims[scope, value]
        self.claims.update({(scope, value): holder for scope, value, holder in decision.claims})
        return True

    def state(self, stream: StreamId) -> Any:
        return self._known(stream).state

    def used(self, command: Command, *, by: UserId) -> dict[StreamId, int]:
        """What the decision's append would guard."""
        view, _ = self._decide(command, Context(by, NOW, _ids()))
        return view.used

    def outcome(
        self, command: Command, *, by: UserId | None, new_id: Callable[[], str] | None = None
    ) -> Decision | Refusal:
        return self._decide(command, Context(by, NOW, new_id or _ids()))[1]

    def _next_place(self) -> Place:
        position = len(self.log) + 1
        return Place(position, FIRST_TIME + timedelta(seconds=position))

    def _decide(self, command: Command, context: Context) -> tuple[View, Decision | Refusal]:
        states: dict[StreamId, Versioned] = {}
        facts: dict[Fact, Any] = {}
        for _ in range(MAX_LOADS):
            view = View(states, facts)
            try:
                outcome: Decision | Refusal = BY_TYPE[type(command)].decide(command, context, view)
            except Refusal as refusal:
                outcome = refusal
            except Missing as missing:
                states |= {stream: self._known(stream) for stream in missing.streams}
                if missing.fact is not None:
                    facts[missing.fact] = self._fact(missing.fact)
                continue
            # The guards of the append, which find out what was presumed wrongly.
            stale = [
                stream for stream, at in view.used.items() if self._known(stream).version != at
            ]
            if not stale:
                return view, outcome
            states |= {stream: self._known(stream) for stream in stale}
        raise AssertionError("the decision asks for more and more")

    def _known(self, stream: StreamId) -> Versioned:
        return self.states.get(stream) or Versioned(0, aggregate_of(stream).initial)

    def _fact(self, fact: Fact) -> Any:
        match fact:
            case PasswordHash():
                return hashed(fact.password)
            case PasswordMatch():
                return fact.password_hash == hashed(fact.password)
            case NewestMessage():
                return self._newest(fact)

    def _newest(self, fact: NewestMessage) -> int:
        positions = [
            place.position
            for event, place in self.log
            if isinstance(event, MessageSent)
            and event.chat_id == fact.chat_id
            and event.sender_id != fact.besides
        ]
        return max(positions, default=0)


def given(*events: Event) -> History:
    return History().record(*events)


def people(*user_ids: UserId) -> list[UserRegistered]:
    return [registered(user) for user in user_ids]


def _ids() -> Callable[[], str]:
    numbers: Iterator[int] = count()
    return lambda: new_id(next(numbers))
