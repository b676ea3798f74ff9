"""What is an operation of the stream and what is not; frames as RFC 6455 has them."""

import json
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import CLIENT, Protocol

from api.stream import frames, wire
from api.stream.frames import (
    Authenticate,
    Malformed,
    Ping,
    Pong,
    Received,
    RunCommand,
    Start,
    Typing,
)
from tests.commands.history import CHAT

MOST = 2**63 - 1
UPPER = str(UUID(int=2**128 - 1)).upper()


def decoded(**fields: Any) -> frames.Operation:
    return frames.decode(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("fields", "operation"),
    [
        ({"op": "authenticate", "token": "x"}, Authenticate(token="x")),
        ({"op": "start"}, Start()),
        ({"op": "start", "after": None, "epoch": None}, Start()),
        ({"op": "start", "after": 0, "epoch": MOST}, Start(after=0, epoch=MOST)),
        ({"op": "received", "position": MOST}, Received(position=MOST)),
        ({"op": "typing", "chat_id": CHAT}, Typing(chat_id=CHAT)),
        ({"op": "ping"}, Ping()),
        ({"op": "pong", "of": {"its": "own"}}, Pong()),
        ({"op": "start", "device": [1]}, Start()),
    ],
)
def test_an_operation_is_what_the_contract_says(fields: Any, operation: frames.Operation) -> None:
    assert decoded(**fields) == operation


@pytest.mark.parametrize("ref", [1, "x", None, True, {"a": [1]}, [], 1.5, "ä" * 20])
def test_a_ref_is_whatever_json_the_client_likes(ref: Any) -> None:
    run = decoded(op="command", ref=ref, name="send-message", data={"a": 1}, idempotency_key="k")
    assert isinstance(run, RunCommand)
    assert json.loads(bytes(run.ref)) == ref
    assert (json.loads(bytes(run.data)), run.idempotency_key) == ({"a": 1}, "k")
    [frame] = parsed(frames.result(run.ref, b'{"position":7}'))
    assert json.loads(frame.data) == {"op": "result", "ref": ref, "position": 7}


def test_a_command_without_data_has_none() -> None:
    run = decoded(op="command", ref=1, name="mark-read")
    assert isinstance(run, RunCommand)
    assert bytes(run.data) == b"{}"


MALFORMED = (
    b"",
    b" ",
    b"null",
    b"[]",
    b"1",
    b'"ping"',
    b"{}",
    b"{",
    b'{"op":"ping"}{"op":"ping"}',
    b'{"op":null}',
    b'{"op":["ping"]}',
    b'{"op":"PING"}',
    b'{"op":"authenticate"}',
    b'{"op":"authenticate","token":1}',
    b'{"op":"authenticate","token":"%s"}' % (b"x" * 5_000),
    b'{"op":"start","after":-1}',
    b'{"op":"start","after":1.5}',
    b'{"op":"start","after":"1"}',
    b'{"op":"start","after":9223372036854775808}',
    b'{"op":"start","epoch":"1"}',
    b'{"op":"received"}',
    b'{"op":"received","position":null}',
    b'{"op":"received","position":true}',
    b'{"op":"typing","chat_id":"%s"}' % UPPER.encode(),
    b'{"op":"typing","chat_id":"x"}',
    b'{"op":"command","ref":1}',
    b'{"op":"command","name":"x"}',
    b'{"op":"command","ref":1,"name":1}',
    b'{"op":"command","ref":1,"name":"%s"}' % (b"x" * 101),
    b'{"op":"command","ref":"%s","name":"x"}' % (b"x" * 256),
    b'{"op":"command","ref":1,"name":"x","idempotency_key":1}',
    b'{"op":"ping","x":' + b"[" * 100_000,
    b'{"op":"ping","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"op":"command","ref":1,"name":"x","data":"\xff"}',
    b'{"op":"ping","x":"\xed\xa0\x80"}',
    b'\xef\xbb\xbf{"op":"ping"}',
    '{"op":"ping"}'.encode("utf-16"),
)


@pytest.mark.parametrize("frame", MALFORMED, ids=lambda frame: repr(frame[:40]))
def test_what_is_no_operation_is_malformed(frame: bytes) -> None:
    with pytest.raises(Malformed):
        frames.decode(frame)


@pytest.mark.fuzz
@given(st.binary() | st.recursive(st.none() | st.text() | st.floats() | st.integers(), st.lists))
def test_whatever_comes_is_an_operation_or_malformed(given_frame: Any) -> None:
    text = given_frame if isinstance(given_frame, bytes) else json.dumps(given_frame).encode()
    try:
        operation = frames.decode(text)
    except Malformed:
        return
    assert isinstance(operation, msgspec.Struct)


def parsed(data: bytes) -> list[Frame]:
    """As a client's parser finds them."""
    client = Protocol(CLIENT, max_size=None)
    client.receive_data(data)
    found = [one for one in client.events_received() if isinstance(one, Frame)]
    assert client.parser_exc is None
    return found


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
def test_a_text_frame_is_one_of_rfc_6455_at_any_length(length: int) -> None:
    payload = b"x" * length
    assert parsed(wire.text_frame(payload) * 2) == [Frame(Opcode.TEXT, payload)] * 2


def test_a_close_frame_has_its_code_and_reason() -> None:
    [frame] = parsed(wire.close_frame(wire.TOO_SLOW, "zu langsam: ä"))
    assert Close.parse(frame.data) == Close(4008, "zu langsam: ä")


def test_who_is_told_to_come_back_is_told_when_and_not_all_at_once() -> None:
    told = [json.loads(wire.return_reason()) for _ in range(100)]
    delays = [one["reconnect_ms"] for one in told]
    assert all(0 <= delay <= 1000 * wire.RETURN_SECONDS for delay in delays)
    assert max(delays) - min(delays) > 200 * wire.RETURN_SECONDS
