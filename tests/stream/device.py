"""A client for the fault tests: it is always connected or on its way back, and keeps books.

It knows nothing but its position; whatever ends a connection, it comes back when it was told to
(1012), or a little later, and goes on from there. What it must never see is in `wrong`.
"""

import asyncio
import json
import random
from collections import Counter
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.protocol import State

WAIT_SECONDS = 0.3
OPEN_TIMEOUT_SECONDS = 15.0
RECEIVED_EVERY = 10
MAX_BYTES = 16 * 1024 * 1024
RESTARTING = 1012
# The begin of a masked text frame of 200 bytes that never comes whole.
HALF_A_FRAME = b"\x81\xfe\x00\xc8abcd" + b"x" * 20


class Device:
    """`run` it. `applied` has the position of every event it got. `then`: where it turns to when
    a connection has ended."""

    def __init__(
        self, url: str, token: str, user_id: str, *, after: int, then: str | None = None
    ) -> None:
        self.user_id = user_id
        self.began = self.position = after
        self.applied: list[int] = []
        self.wrong: list[Any] = []
        self.ends: Counter[str] = Counter()
        self.delays_ms: list[int] = []
        self._url = url
        self._then = then or url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._connection: ClientConnection | None = None

    async def run(self) -> None:
        while True:
            try:
                end = await self._once()
            except (OSError, TimeoutError, EOFError, InvalidHandshake) as error:
                end = type(error).__name__
            self.ends[end] += 1
            self._url = self._then
            await asyncio.sleep(self._wait_seconds(end))

    def cut_in_mid_frame(self) -> None:
        """Nobody says goodbye; the server has half of something."""
        if self._connection is not None and self._connection.state is State.OPEN:
            self._connection.transport.write(HALF_A_FRAME)
            self._connection.transport.abort()

    def _wait_seconds(self, end: str) -> float:
        if end == str(RESTARTING) and self.delays_ms:
            return self.delays_ms[-1] / 1000
        return random.uniform(0.5, 1.5) * WAIT_SECONDS

    async def _once(self) -> str:
        """How the connection ended."""
        async with connect(
            self._url.replace("http", "ws", 1) + "/v1/stream",
            additional_headers=self._headers,
            max_size=MAX_BYTES,
            compression=None,
            ping_interval=None,
            open_timeout=OPEN_TIMEOUT_SECONDS,
            close_timeout=1,
        ) as connection:
            self._connection = connection
            try:
                await self._speak(connection)
            except ConnectionClosed:
                pass
            finally:
                self._connection = None
            code, reason = connection.close_code, connection.close_reason
        if code == RESTARTING:
            self.delays_ms.append(json.loads(reason or "")["reconnect_ms"])
        return str(code)

    async def _speak(self, connection: ClientConnection) -> None:
        await connection.send(json.dumps({"op": "start", "after": self.position}))
        async for text in connection:
            frame = json.loads(text)
            match frame["op"]:
                case "event":
                    self._take(frame["position"])
                    if len(self.applied) % RECEIVED_EVERY == 0:
                        said = {"op": "received", "position": self.position}
                        await connection.send(json.dumps(said))
                case "ping":
                    await connection.send('{"op":"pong"}')
                case "ready" if not frame["resumed"]:
                    self.wrong.append(frame)
                case _:
                    pass

    def _take(self, position: int) -> None:
        if position <= self.position:
            self.wrong.append(f"{position} after {self.position}")
        self.position = position
        self.applied.append(position)
