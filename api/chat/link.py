"""The stream as a client needs it: connected, resumed after whatever ends it, for ever.

All that is told goes, in order, to one place (`tell`, which may make us wait: then the server
waits too). The position that we resume after is that of the last event told: what was told once
is not told again, and nothing is left out. Raises what can't be mended: a session that ended.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from api.chat.errors import ChatError, SessionEnded, Unreachable
from api.chat.server import PAUSE_MAX_SECONDS, Json, Server, backoff, retry_after

OPEN_SECONDS = 10.0
CLOSE_SECONDS = 2.0
# A catch-up waits for its turn on the server.
READY_SECONDS = 60.0
MAX_FRAME_BYTES = 4_000_000

NOT_AUTHENTICATED = 4001
SESSION_ENDED = 4003
MALFORMED = 4009
SERVER_RESTARTING = 1012


class Frame(NamedTuple):
    said: Json


class Lost(NamedTuple):
    """There is no connection; the next is tried after `pause_seconds`."""

    why: str
    pause_seconds: float


class Link:
    """`run` it; `say` is heard only while a stream is there, which commands must not rely on."""

    def __init__(
        self, server: Server, position: int, tell: Callable[[Frame | Lost], Awaitable[None]]
    ) -> None:
        self._server = server
        self._position = position
        self._tell = tell
        self._epoch: int | None = None
        self._connection: ClientConnection | None = None
        self._token = ""
        self._refused = ""
        self._failures = 0

    @property
    def is_live(self) -> bool:
        return self._connection is not None

    async def run(self) -> None:
        while True:
            lost = await self._until_lost()
            self._connection = None
            await self._tell(lost)
            await asyncio.sleep(lost.pause_seconds)

    async def say(self, op: str, **fields: Any) -> None:
        if self._connection is not None:
            with suppress(ConnectionClosed):
                await self._connection.send(_text({"op": op, **fields}))

    async def _until_lost(self) -> Lost:
        """Raises ChatError."""
        try:
            self._token = await self._server.token(refused=self._refused)
            async with connect(
                self._server.url.replace("http", "ws", 1) + "/v1/stream",
                additional_headers={"Authorization": f"Bearer {self._token}"},
                max_size=MAX_FRAME_BYTES,
                open_timeout=OPEN_SECONDS,
                close_timeout=CLOSE_SECONDS,
                ping_interval=None,
            ) as connection:
                return await self._follow(connection)
        except InvalidStatus as error:
            return self._not_accepted(error)
        except (OSError, TimeoutError, InvalidHandshake, Unreachable) as error:
            return self._lost(str(error) or "no answer")

    async def _follow(self, connection: ClientConnection) -> Lost:
        try:
            heartbeat_seconds = await self._start(connection)
            while True:
                await self._take(await _heard(connection, heartbeat_seconds), connection)
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else 1006
            return self._closed(code, closed.rcvd.reason if closed.rcvd else "")

    async def _start(self, connection: ClientConnection) -> float:
        after: Json = {"after": self._position}
        if self._epoch is not None:
            after["epoch"] = self._epoch
        await connection.send(_text({"op": "start", **after}))
        while True:
            said = await _heard(connection, READY_SECONDS)
            if said.get("op") == "ready":
                break
            await self._take(said, connection)
        self._epoch = said["epoch"]
        if not said["resumed"]:
            self._position = said["position"]
        self._connection, self._failures, self._refused = connection, 0, ""
        await self._tell(Frame(said))
        return float(said["heartbeat_ms"]) / 1000

    async def _take(self, said: Json, connection: ClientConnection) -> None:
        match said.get("op"):
            case "ping":
                await connection.send(_text({"op": "pong"}))
            case "pong":
                pass
            case "event":
                self._position = said["position"]
                await self._tell(Frame(said))
            case _:
                await self._tell(Frame(said))

    def _closed(self, code: int, reason: str) -> Lost:
        if code == SESSION_ENDED:
            raise SessionEnded("the session has ended: log in again")
        if code == MALFORMED:
            raise ChatError(f"the server does not understand this client: {reason}")
        if code == SERVER_RESTARTING:
            return Lost("the server restarts", return_seconds(reason))
        if code == NOT_AUTHENTICATED:
            # It ran out. Where the session has ended too, there is no next one to be had.
            self._refused = self._token
        return self._lost(reason or f"closed with {code}")

    def _not_accepted(self, error: InvalidStatus) -> Lost:
        status = error.response.status_code
        if status == 401:
            self._refused = self._token
        lost = self._lost(f"HTTP {status}")
        asked = error.response.headers.get("retry-after")
        return lost._replace(pause_seconds=retry_after(asked, lost.pause_seconds))

    def _lost(self, why: str) -> Lost:
        self._failures += 1
        return Lost(why, backoff(self._failures - 1))


async def _heard(connection: ClientConnection, silent_seconds: float) -> Json:
    """The next frame. Whoever says nothing for so long is asked; who does not answer, is gone."""
    try:
        async with asyncio.timeout(silent_seconds):
            return _json(await connection.recv())
    except TimeoutError:
        await connection.send(_text({"op": "ping"}))
    async with asyncio.timeout(silent_seconds):
        return _json(await connection.recv())


def return_seconds(reason: str) -> float:
    """When the server that goes away wants to see us again."""
    with suppress(msgspec.DecodeError, KeyError, TypeError, ValueError):
        asked = float(msgspec.json.decode(reason)["reconnect_ms"]) / 1000
        return min(PAUSE_MAX_SECONDS, max(0.0, asked))
    return backoff(0)


def _json(text: str | bytes) -> Json:
    frame: Json = msgspec.json.decode(text)
    return frame


def _text(frame: Json) -> str:
    return msgspec.json.encode(frame).decode()
