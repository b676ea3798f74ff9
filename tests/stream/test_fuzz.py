"""Whatever bytes come in: the contract's code, memory within bounds, and nobody else notices."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.stream import connection, wire
from tests.api.served import Api, Person, serving
from tests.stream.client import Client, connected
from tests.stream.raw import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WAIT_SECONDS,
    Raw,
    frame,
    opened,
)

OPERATIONS: tuple[dict[str, Any], ...] = (
    {"op": "authenticate", "token": "x"},
    {"op": "start", "after": 1, "epoch": 1},
    {"op": "received", "position": 1},
    {"op": "command", "ref": 1, "name": "mark-read", "data": {"chat_id": "x"}},
    {"op": "typing", "chat_id": "00000002-0000-7000-8000-000000000001"},
    {"op": "ping"},
    {"op": "pong"},
)
PING_FRAME = frame(b'{"op":"ping"}')
STUCK_SECONDS = 0.3
# What the server reads at once, and answers as a whole.
ONE_READ_BYTES = 256 * 1024
HALF = b'{"op":"pi', b'ng"}'

# What is no text frame, or none of one piece, as RFC 6455 has them.
BROKEN: dict[str, bytes] = {
    "binary": frame(b'{"op":"ping"}', BINARY),
    "binary, in pieces": frame(b"a", BINARY, fin=False) + frame(b"b", CONTINUATION),
    "unmasked": frame(b'{"op":"ping"}', is_masked=False),
    "a reserved bit": frame(b'{"op":"ping"}', reserved=4),
    "all reserved bits": frame(b'{"op":"ping"}', reserved=7),
    "an opcode that there is not": frame(b"", 3),
    "a control opcode that there is not": frame(b"", 11),
    "a piece of nothing": frame(b"x", CONTINUATION),
    "a text in the middle of a text": frame(HALF[0], fin=False) + PING_FRAME,
    "a ping in pieces": frame(b"x", PING, fin=False),
    "a ping that is too long": frame(b"x" * 126, PING),
    "a close of one byte": frame(b"x", CLOSE),
    "a close with a code that there is not": frame(b"\x00\x01", CLOSE),
    "a close that is no UTF-8": frame(b"\x03\xe8\xff", CLOSE),
    "a length that is negative": frame(b"", length=2**64 - 1),
    "a frame that is too large": frame(b"", length=wire.MAX_FRAME_BYTES + 1),
    "a frame of terabytes": frame(b"", length=2**42),
    "no UTF-8": frame(b'{"op":"ping","x":"\xff\xfe"}'),
    "half a character": frame(b'{"op":"ping","x":"\xe2\x98"}'),
    "no JSON": frame(b"hello"),
    "nothing": frame(b""),
    "an array": frame(b"[]"),
    "too deep": frame(b'{"op":"ping","x":' + b"[" * 200_000),
    "too deep, and closed": frame(b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b',"op":"ping"}'),
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(64),
    "ones": b"\xff" * 64,
}


def text(operation: dict[str, Any]) -> bytes:
    return frame(json.dumps(operation).encode())


@asynccontextmanager
async def bystander(api: Api, person: Person) -> AsyncIterator[Client]:
    """Somebody who is connected all the while, and is still served afterwards."""
    async with connected(api.url, person.session["access_token"]) as client:
        await client.start()
        yield client
        await client.say("ping")
        await client.wait(lambda one: one["op"] == "pong")
        name = f"unharmed {uuid4().hex}"
        await client.do("update-profile", display_name=name)
        await client.event("profile_updated", display_name=name)
        assert client.closed is None


async def test_what_is_no_frame_is_closed_with_the_contracts_code(api: Api) -> None:
    ann = await api.person("ann")
    async with bystander(api, ann):
        for token in (None, ann.session["access_token"]):
            for name, data in BROKEN.items():
                async with opened(api.url, token) as raw:
                    await raw.send(PING_FRAME)
                    assert await raw.next() == (TEXT, b'{"op":"pong"}')
                    await raw.send(data)
                    closing = name.startswith("a close with a code")
                    assert await raw.close_code() in ((1002, 4009) if closing else (4009,)), name


async def test_a_text_in_pieces_with_pings_between_is_one(api: Api) -> None:
    ann = await api.person("ann")
    async with opened(api.url, ann.session["access_token"]) as raw:
        pieces = [frame(HALF[0], fin=False), frame(b"?", PING), frame(HALF[1], CONTINUATION)]
        for byte in b"".join(pieces):
            await raw.send(bytes([byte]))
        assert await raw.next() == (PONG, b"?")
        assert await raw.next() == (TEXT, b'{"op":"pong"}')
        await raw.send(frame(b"", fin=False) + frame(b'{"op":"ping"}', CONTINUATION))
        assert await raw.next() == (TEXT, b'{"op":"pong"}')
        await raw.send(frame(b"\x03\xe8", CLOSE))
        assert await raw.close_code() == 1000


async def test_after_what_was_malformed_nothing_is_done_any_more(api: Api) -> None:
    ann = await api.person("ann")
    rename = {"op": "command", "ref": 1, "name": "update-profile", "data": {"display_name": "X"}}
    async with bystander(api, ann) as client, opened(api.url, ann.session["access_token"]) as raw:
        await raw.send(frame(b"{}") + text(rename) + text({"op": "start"}))
        assert await raw.close_code() == 4009
        assert [one for one in client.events if one["data"].get("display_name") == "X"] == []


async def test_too_deep_data_of_a_command_is_a_problem_of_the_command(api: Api) -> None:
    ann = await api.person("ann")
    deep = b"[" * 100_000 + b"]" * 100_000
    begin = b'{"op":"command","ref":1,"name":"update-profile","data":'
    for data in (deep, b'{"display_name":' + deep + b"}", b'"x"', b"null", b"{}"):
        async with bystander(api, ann), opened(api.url, ann.session["access_token"]) as raw:
            await raw.send(frame(begin + data + b"}"))
            came = await raw.next()
            assert came
            if came.opcode == CLOSE:
                assert int.from_bytes(came.payload[:2]) == 4009
                continue
            said = json.loads(came.payload)
            assert said["op"] == "result" or 400 <= said["problem"]["status"] < 500, said


async def flooded(raw: Raw, data: bytes, *, most_bytes: int) -> int:
    """Says the same over and over and reads nothing, until the server takes no more of it or is
    gone. The number of bytes that it may have taken."""
    taken = 0
    while taken < most_bytes and not raw.writer.is_closing():
        raw.writer.write(data)
        taken += len(data)
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                await raw.writer.drain()
        except (TimeoutError, ConnectionError):
            break
    return taken


def server_side(api: Api, person: Person) -> Any:
    """The connection of the user that came last."""
    found = api.live._services.sockets._of_user[person.user_id]
    return max(found, key=lambda one: one.heard_at)


@pytest.mark.parametrize(
    "flood",
    [frame(b"x" * 125, PING), PING_FRAME],
    ids=["pings of WebSocket", "pings"],
)
async def test_who_asks_without_reading_is_closed_before_much_waits_for_them(
    api: Api, monkeypatch: pytest.MonkeyPatch, flood: bytes
) -> None:
    ann = await api.person("ann")
    monkeypatch.setattr(wire, "MAX_BUFFERED_BYTES", 16_384)
    monkeypatch.setattr(connection, "FRAMES_PER_SECOND", 1e6)
    async with bystander(api, ann), opened(api.url, ann.session["access_token"]) as raw:
        await raw.send(PING_FRAME)
        assert await raw.next() == (TEXT, b'{"op":"pong"}')
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        served = server_side(api, ann)
        transport = served._socket.transport
        transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)
        most = 0
        async with asyncio.timeout(WAIT_SECONDS):
            while served._socket.is_open:
                await flooded(raw, flood * 100, most_bytes=1)
                most = max(most, transport.get_write_buffer_size())
        assert most < 16_384 + ONE_READ_BYTES


@pytest.mark.parametrize("flood", [frame(b"", PONG), frame(b"", PING)], ids=["pongs", "pings"])
async def test_frames_that_say_nothing_are_taken_at_a_rate_like_all_others(
    api: Api, monkeypatch: pytest.MonkeyPatch, flood: bytes
) -> None:
    ann = await api.person("ann")
    # Nothing is regained meanwhile, nor read again.
    monkeypatch.setattr(connection, "FRAMES_PER_SECOND", 0.001)
    async with bystander(api, ann), opened(api.url, ann.session["access_token"]) as raw:
        await raw.send(PING_FRAME)
        assert await raw.next() == (TEXT, b'{"op":"pong"}')
        served = server_side(api, ann)
        await raw.send(flood * connection.FRAMES_BURST)
        async with asyncio.timeout(WAIT_SECONDS):
            while not served._socket.read_paused:
                await asyncio.sleep(0.01)


async def test_a_text_in_endless_pieces_is_malformed(api: Api) -> None:
    ann = await api.person("ann")
    async with bystander(api, ann):
        for piece in (b"", b"x"):
            async with opened(api.url, ann.session["access_token"]) as raw:
                await raw.send(frame(b"", fin=False))
                await raw.send(frame(piece, CONTINUATION, fin=False) * wire.MAX_PIECES)
                assert await raw.close_code() == 4009


async def test_a_text_in_many_pieces_is_taken(api: Api) -> None:
    padding = [b" "] * (wire.MAX_PIECES - 3)
    async with opened(api.url) as raw:
        await raw.send(frame(b'{"op":', fin=False))
        await raw.send(b"".join(frame(one, CONTINUATION, fin=False) for one in padding))
        await raw.send(frame(b'"ping"}', CONTINUATION))
        assert await raw.next() == (TEXT, b'{"op":"pong"}')


async def test_what_waits_for_a_token_to_be_looked_at_is_limited(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await api.person("ann")
    go_on = asyncio.Event()

    async def slowly(*_: Any) -> Any:
        await go_on.wait()

    large = text({"op": "ping", "x": "x" * 1_000_000})
    async with bystander(api, ann):
        for waiting in (large * 3, PING_FRAME * (connection.MAX_WAITING_FRAMES + 1)):
            async with opened(api.url) as raw:
                with monkeypatch.context() as patch:
                    patch.setattr(connection, "caller_with", slowly)
                    await raw.send(text({"op": "authenticate", "token": "x"}))
                    await raw.send(waiting)
                    assert await raw.close_code() == 4009
        go_on.set()


async def test_commands_that_wait_are_limited_however_long_they_wait(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More are not read; and nobody who is not read is taken for silent."""
    ann = await api.person("ann")
    go_on = asyncio.Event()
    run = connection.run_named

    async def slowly(*given: Any) -> Any:
        await go_on.wait()
        return await run(*given)

    monkeypatch.setattr(connection, "MAX_WAITING_COMMANDS", 4)
    data = {"display_name": "x", "padding": "x" * 200_000}
    command = text({"op": "command", "ref": 1, "name": "update-profile", "data": data})
    async with bystander(api, ann), opened(api.url, ann.session["access_token"]) as raw:
        with monkeypatch.context() as patch:
            patch.setattr(connection, "run_named", slowly)
            await raw.send(PING_FRAME)
            assert await raw.next() == (TEXT, b'{"op":"pong"}')
            served = server_side(api, ann)
            taken = await flooded(raw, command, most_bytes=40_000_000)
            assert taken < 40_000_000
            async with asyncio.timeout(WAIT_SECONDS):
                while len(served._commands) < 4:
                    await asyncio.sleep(0.01)
                heard_at = served.heard_at
                while served.heard_at == heard_at:
                    await asyncio.sleep(0.01)
            assert len(served._commands) <= 6
            go_on.set()
        for _ in range(taken // len(command) - 1):
            came = await raw.next()
            assert came
            assert json.loads(came.payload)["problem"]["status"] == 400


# ------------------------------------------------------------------------------ at random

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
operations = st.sampled_from(OPERATIONS)
fields = st.sampled_from(["op", "token", "after", "epoch", "position", "ref", "name", "data"])
mutated = st.builds(
    lambda operation, field, value: operation | {field: value}, operations, fields, values
)
payloads = st.one_of(
    (operations | mutated | values).map(lambda one: json.dumps(one).encode()),
    st.binary(max_size=200),
)
frames = st.builds(
    frame,
    payloads,
    st.sampled_from([TEXT] * 8 + [BINARY, CONTINUATION, PING, PONG, 3, 15]),
    fin=st.sampled_from([True] * 5 + [False]),
    reserved=st.sampled_from([0] * 9 + [1]),
    is_masked=st.sampled_from([True] * 9 + [False]),
)
conversations = st.lists(frames | st.binary(max_size=40), min_size=1, max_size=12)

CODES = {4001, 4009}


@pytest.mark.fuzz
def test_random_frames_harm_nobody(database_url: str, nats_url: str) -> None:
    """With a token and without; in one piece or cut anywhere."""
    with asyncio.Runner() as runner:
        stack = serving(database_url, nats_url)
        api = runner.run(stack.__aenter__())
        try:
            ann = runner.run(api.person("ann"))

            @given(conversations, st.booleans(), st.integers(0, 2**32))
            def talk(said: list[bytes], signed_in: bool, seed: int) -> None:
                token = ann.session["access_token"] if signed_in else None
                runner.run(conversation(api, token, said, random.Random(seed)))

            talk()
            runner.run(still_serves(api, ann))
        finally:
            runner.run(stack.__aexit__(None, None, None))


async def conversation(
    api: Api, token: str | None, said: list[bytes], chance: random.Random
) -> None:
    """It ends with what closes any connection, so that it always ends."""
    data = b"".join(said)
    cut = chance.randint(0, len(data))
    async with opened(api.url, token) as raw:
        await raw.send(data[:cut])
        await raw.send(data[cut:])
        # Whatever frame is open takes these in, or is closed by them.
        for _ in range(3):
            await raw.send(bytes(300) + b"\xff" * 300)
        assert await raw.close_code() in CODES


async def still_serves(api: Api, person: Person) -> None:
    async with bystander(api, person):
        pass
    async with asyncio.timeout(WAIT_SECONDS):
        while len(api.live._services.sockets):
            await asyncio.sleep(0.05)
