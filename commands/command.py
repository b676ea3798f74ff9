"""What a decision is made of: the command, its context, the view of the state, the outcome.

`decide(command, context, view) -> Decision` is pure. It asks the view for what it needs to
know; what is not there yet, the view raises as `Missing`, the executor fetches it and asks
again. So a decision names its dependencies by using them, and exactly those become the
guards of its append: had one of them changed meanwhile, the decision is made anew.

Nothing to do: a decision without events. Forbidden: a `Refusal`. Time and ids come in by the
context, and are the same when a decision is made again.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from domain.attachment import Attachment
from domain.chat import Chat
from domain.contact import Contact
from domain.event import Event
from domain.ids import (
    AttachmentId,
    ChatId,
    GatewayId,
    MessageId,
    StreamId,
    UserId,
    attachment_stream,
    chat_stream,
    contact_stream,
    gateway_stream,
    message_stream,
    receipt_stream,
    user_stream,
)
from domain.message import Message
from domain.receipt import Receipt
from domain.refusals import Forbidden, NotFound
from domain.user import User

MIN_PASSWORD_BYTES = 8
MAX_PASSWORD_BYTES = 72  # bcrypt reads no further

# Not of spaces alone.
DisplayName = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"\S")]
# `$(?!\n)`: alone, `$` would let a newline at the end through.
AvatarUrl = Annotated[
    str, Meta(max_length=500, pattern=r"^[hH][tT][tT][pP][sS]?://[^\s/?#]+[^\s]*$(?!\n)")
]
GroupName = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"\S")]
# URL-safe without escaping, and no `direct-…`, which names direct chats (`check_slug`).
Slug = Annotated[
    str, Meta(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$(?!\n)")
]
# The byte limits need code (`check_password`); these say what JSON Schema can.
Password = Annotated[str, Meta(min_length=2, max_length=MAX_PASSWORD_BYTES)]


class Command(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request to change something. Its name stands in the table, `commands.HANDLERS`."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a command answers besides the position. Kept with its idempotency key: no secrets."""


class Context:
    """Who, when, and new ids: all that a decision may not find out by itself."""

    def __init__(self, actor: UserId | None, now: datetime, new_id: Callable[[], str]) -> None:
        self._actor = actor
        self.now = now
        self._new_id = new_id
        self._ids: list[str] = []

    @property
    def actor(self) -> UserId:
        assert self._actor is not None, "the shell lets no anonymous caller this far"
        return self._actor

    def id(self, ordinal: int) -> str:
        """The decision's n-th new UUIDv7: the same each time it is asked for."""
        while len(self._ids) <= ordinal:
            self._ids.append(self._new_id())
        return self._ids[ordinal]


class PasswordHash(NamedTuple):
    """A fact to be computed: the bcrypt hash of a new password."""

    password: str


class PasswordMatch(NamedTuple):
    """A fact to be computed: whether the password is the one of the hash."""

    password: str
    password_hash: str


class NewestMessage(NamedTuple):
    """A fact to be read from the log: the position of a chat's newest message of another
    sender than `besides`; 0 if there is none."""

    chat_id: ChatId
    besides: UserId


Fact = PasswordHash | PasswordMatch | NewestMessage


class Missing(Exception):
    """The view lacks streams or facts that a decision asked for."""

    def __init__(self, streams: tuple[StreamId, ...] = (), fact: Fact | None = None) -> None:
        super().__init__(streams, fact)
        self.streams = streams
        self.fact = fact


class Versioned(NamedTuple):
    """A folded state and the stream version it was folded up to."""

    version: int
    state: Any


class View:
    """The states that one decision sees. `used` collects what it looked at."""

    def __init__(self, states: Mapping[StreamId, Versioned], facts: Mapping[Fact, Any]) -> None:
        self._states = states
        self._facts = facts
        self.used: dict[StreamId, int] = {}

    def user(self, user_id: UserId) -> User:
        state: User = self._state(user_stream(user_id))
        return state

    def users(self, user_ids: list[UserId]) -> list[User]:
        """Many at once, fetched together."""
        return self._all([user_stream(user_id) for user_id in user_ids])

    def chat(self, chat_id: ChatId) -> Chat:
        state: Chat = self._state(chat_stream(chat_id))
        return state

    def chats(self, chat_ids: list[ChatId]) -> list[Chat]:
        """Many at once, fetched together."""
        return self._all([chat_stream(chat_id) for chat_id in chat_ids])

    def message(self, message_id: MessageId) -> Message:
        state: Message = self._state(message_stream(message_id))
        return state

    def attachments(self, attachment_ids: Sequence[AttachmentId]) -> list[Attachment]:
        """Many at once, fetched together."""
        return self._all([attachment_stream(attachment_id) for attachment_id in attachment_ids])

    def contact(self, one: UserId, other: UserId) -> Contact:
        state: Contact = self._state(contact_stream(one, other))
        return state

    def contacts(self, user_id: UserId, others: list[UserId]) -> list[Contact]:
        """With strangers more often than not, so what is not at hand is presumed not to be."""
        streams = [contact_stream(user_id, other) for other in others]
        return [self._presumed_new(stream, Contact()) for stream in streams]

    def receipt(self, chat_id: ChatId, user_id: UserId) -> Receipt:
        state: Receipt = self._state(receipt_stream(chat_id, user_id))
        return state

    def new_user(self, user_id: UserId) -> User:
        state: User = self._presumed_new(user_stream(user_id), User())
        return state

    def new_chat(self, chat_id: ChatId) -> Chat:
        state: Chat = self._presumed_new(chat_stream(chat_id), Chat())
        return state

    def new_message(self, message_id: MessageId) -> Message:
        state: Message = self._presumed_new(message_stream(message_id), Message())
        return state

    def new_attachment(self, attachment_id: AttachmentId) -> Attachment:
        state: Attachment = self._presumed_new(attachment_stream(attachment_id), Attachment())
        return state

    def own_gateway(self, gateway_id: GatewayId) -> None:
        """Guards the stream against anybody else's writing to it."""
        self._presumed_new(gateway_stream(gateway_id), None)

    def fact(self, fact: Fact) -> Any:
        if fact not in self._facts:
            raise Missing(fact=fact)
        return self._facts[fact]

    def _state(self, stream: StreamId) -> Any:
        known = self._states.get(stream)
        if known is None:
            raise Missing(streams=(stream,))
        self.used[stream] = known.version
        return known.state

    def _all(self, streams: list[StreamId]) -> list[Any]:
        missing = tuple(stream for stream in streams if stream not in self._states)
        if missing:
            raise Missing(streams=missing)
        return [self._state(stream) for stream in streams]

    def _presumed_new(self, stream: StreamId, initial: Any) -> Any:
        """A stream that should not exist yet is not looked up: its guard tells if it does."""
        known = self._states.get(stream)
        self.used[stream] = known.version if known else 0
        return known.state if known else initial


class Claim(NamedTuple):
    """A value that only one stream may hold: usernames and slugs. A membership (`USER/CHAT`)
    and a contact (`USER/OTHER`) are claimed so that a user's can be listed from the log's side
    when the account is deleted."""

    scope: Literal["username", "slug", "membership", "contact"]
    value: str
    holder: StreamId


class Decision(NamedTuple):
    """What shall be appended, which unique values taken and given back, what is answered.

    `repeats`: nothing is appended, for this was done before, at that position.
    """

    events: list[Event]
    answer: Answer = Answer()
    claims: tuple[Claim, ...] = ()
    releases: tuple[Claim, ...] = ()
    repeats: int | None = None


Decide = Callable[[Any, Context, View], Decision]


class Handler(NamedTuple):
    """A line of the table of commands; `name` is the contract's.

    `has_password`: its body is only ever kept as a slow hash.
    """

    name: str
    command: type[Command]
    answer: type[Answer]
    decide: Decide
    needs_actor: bool = True
    has_password: bool = False


def open_chat(view: View, chat_id: ChatId, actor: UserId) -> Chat:
    """The chat, if the actor is an active participant; else as if there were none."""
    chat = view.chat(chat_id)
    if not chat.is_open_to(actor) or view.user(actor).is_deleted:
        raise NotFound("there is no such chat")
    return chat


def open_group(view: View, chat_id: ChatId, actor: UserId) -> Chat:
    """As `open_chat`. A direct chat has its two participants for ever, and nothing to edit."""
    chat = open_chat(view, chat_id, actor)
    if chat.is_direct:
        raise Forbidden("this is a direct chat, not a group")
    return chat
