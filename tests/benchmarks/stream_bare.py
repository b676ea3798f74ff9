"""The stream's baseline, a process of its own: a WebSocket server that only passes on.

What uvicorn's own protocol and one `send` a recipient cost, with no log, no database and no
receipts: a message that comes in goes to all members of its chat. Reads `Bare` on stdin, says its
port on stdout, and speaks enough of the stream for `stream_load`.
"""

import socket
import sys
from datetime import UTC, datetime
from itertools import count
from typing import Any

import msgspec
import uvicorn
import uvloop

BACKLOG = 2_048


class Bare(msgspec.Struct):
    """The tokens of each chat's members."""

    members: dict[str, list[str]]


class _Data(msgspec.Struct):
    chat_id: str
    content: str


class _Said(msgspec.Struct):
    op: str
    ref: int = 0
    data: _Data | None = None


class Application:
    def __init__(self, bare: Bare) -> None:
        self._members = bare.members
        self._sends: dict[str, Any] = {}
        self._positions = count(1)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        token = dict(scope["headers"])[b"authorization"].decode().removeprefix("Bearer ")
        await receive()
        await send({"type": "websocket.accept"})
        self._sends[token] = send
        while (message := await receive())["type"] == "websocket.receive":
            await self._take(msgspec.json.decode(message["text"], type=_Said), send)
        del self._sends[token]

    async def _take(self, said: _Said, send: Any) -> None:
        if said.op == "start":
            await _say(send, {"op": "ready", "position": 0})
        elif said.data is not None:
            position = next(self._positions)
            event = msgspec.json.encode(_event(position, said.data)).decode()
            for token in self._members[said.data.chat_id]:
                await self._sends[token]({"type": "websocket.send", "text": event})
            await _say(send, {"op": "result", "ref": said.ref, "position": position})


async def _say(send: Any, said: dict[str, Any]) -> None:
    await send({"type": "websocket.send", "text": msgspec.json.encode(said).decode()})


def _event(position: int, data: _Data) -> dict[str, Any]:
    """As long as the stream's."""
    at = datetime.now(UTC)
    sender = {"id": data.chat_id, "display_name": "bench_100"}
    shown = {
        "message_id": data.chat_id,
        "chat_id": data.chat_id,
        "sender_id": data.chat_id,
        "sender": sender,
        "content": data.content,
        "content_type": "text",
        "metadata": {},
        "reply_to_id": None,
        "reply_to": None,
        "attachments": [],
        "created_at": at,
    }
    return {
        "op": "event",
        "position": position,
        "type": "message_sent",
        "chat_id": data.chat_id,
        "at": at,
        "data": shown,
    }


async def main() -> None:
    bare = msgspec.json.decode(sys.stdin.buffer.readline(), type=Bare)
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        Application(bare),
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        lifespan="off",
        access_log=False,
        log_level="error",
    )
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    uvloop.run(main())
