"""What is in a frame: contract.md, section 4.

Operations in: what is none of them, or has a field of a wrong kind, raises Malformed. Those out are encoded here
and nowhere else, as whole WebSocket frames.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from api.problems import Problem
from api.queries.query import Time
from api.stream.shown import Shown
from api.stream.wire import text_frame
from domain.ids import UUID_TEXT, ChatId, UserId
from domain.user import StatusChanged

MAX_POSITION = 2**63 - 1
MAX_TOKEN_CHARACTERS = 4096
MAX_NAME_CHARACTERS = 100
MAX_REF_BYTES = 256

Position = Annotated[int, Meta(ge=0, le=MAX_POSITION)]


class Malformed(Exception):
    """The frame is no operation of the stream."""


class _In(msgspec.Struct, frozen=True, kw_only=True, tag_field="op"):
    """What a client adds of its own is not looked at."""


class Authenticate(_In, tag="authenticate", frozen=True, kw_only=True):
    token: Annotated[str, Meta(max_length=MAX_TOKEN_CHARACTERS)]


class Start(_In, tag="start", frozen=True, kw_only=True):
    after: Position | None = None
    epoch: Position | None = None


class Received(_In, tag="received", frozen=True, kw_only=True):
    position: Position


class RunCommand(_In, tag="command", frozen=True, kw_only=True):
    ref: msgspec.Raw
    name: Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)]
    data: msgspec.Raw = msgspec.Raw(b"{}")
    idempotency_key: str | None = None


class Typing(_In, tag="typing", frozen=True, kw_only=True):
    chat_id: Annotated[ChatId, UUID_TEXT]


class Ping(_In, tag="ping", frozen=True, kw_only=True): ...


class Pong(_In, tag="pong", frozen=True, kw_only=True): ...


Operation = Authenticate | Start | Received | RunCommand | Typing | Ping | Pong

_decoder = msgspec.json.Decoder(Operation)


def decode(frame: bytes) -> Operation:
    """Raises Malformed."""
    try:
        frame.decode()  # raw parts are not looked at by the decoder
        operation: Operation = _decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from None
    if isinstance(operation, RunCommand) and len(bytes(operation.ref)) > MAX_REF_BYTES:
        raise Malformed(f"a ref may have at most {MAX_REF_BYTES} bytes")
    return operation


class _Out(msgspec.Struct, frozen=True, kw_only=True, tag_field="op"):
    """The names of fields are the contract's."""


class Ready(_Out, tag="ready", frozen=True, kw_only=True):
    position: int
    epoch: int
    resumed: bool
    heartbeat_ms: int


class Event(_Out, tag="event", frozen=True, kw_only=True):
    position: int
    type: str
    chat_id: ChatId | None
    at: Time
    data: Any


class Presence(_Out, tag="presence", frozen=True, kw_only=True):
    user_id: UserId
    status: Literal["online", "away", "offline"]
    last_seen: Time | None


class Typed(_Out, tag="typing", frozen=True, kw_only=True):
    chat_id: ChatId
    user_id: UserId


class Refused(_Out, tag="problem", frozen=True, kw_only=True):
    ref: msgspec.Raw
    problem: Problem


Said = Ready | Event | Presence | Typed | Refused

_encode = msgspec.json.encode


def encode(said: Said) -> bytes:
    """The whole WebSocket frame."""
    return text_frame(_encode(said))


def event_frame(position: int, at: datetime, shown: Shown) -> bytes:
    return encode(
        Event(position=position, type=shown.type, chat_id=shown.chat_id, at=at, data=shown.data)
    )


def presence_frame(event: StatusChanged, at: datetime) -> bytes:
    return encode(Presence(user_id=event.user_id, status=event.status, last_seen=at))


def result(ref: msgspec.Raw, answer: bytes) -> bytes:
    """`answer` is the JSON object that the same command is answered over HTTP."""
    return text_frame(b'{"op":"result","ref":%s,%s' % (bytes(ref), answer[1:]))


PING = text_frame(b'{"op":"ping"}')
PONG = text_frame(b'{"op":"pong"}')
