"""A client of the stream, as the tests need one: it keeps every frame, and waits for those it wants.

`Client` speaks; `tests.stream.reducer` says what a client makes of what it hears.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

WAIT_SECONDS = 60.0  # nothing is judged by it: the machine may be busy with other things
MAX_BYTES = 16 * 1024 * 1024

Json = dict[str, Any]


class Client:
    """One connection. `frames` has all that came, in order; `closed` the code and the reason."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.frames: list[Json] = []
        self.closed: tuple[int, str] | None = None
        self._refs = count(1)
        self._came = asyncio.Event()
        self.reading = asyncio.create_task(self._read())

    @property
    def events(self) -> list[Json]:
        return [frame for frame in self.frames if frame["op"] == "event"]

    @property
    def positions(self) -> list[int]:
        return [event["position"] for event in self.events]

    async def say(self, op: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"op": op, **fields}))

    async def start(self, after: int | None = None, **fields: Any) -> Json:
        """The frame that says it is ready."""
        seen = len(self.frames)
        await self.say("start", **({} if after is None else {"after": after}), **fields)
        return await self.wait(lambda frame: frame["op"] == "ready", since=seen)

    async def command(self, name: str, /, *, key: str | None = None, **data: Any) -> Json:
        """The result or the problem."""
        ref = f"ref {next(self._refs)}"
        extra = {} if key is None else {"idempotency_key": key}
        await self.say("command", ref=ref, name=name, data=data, **extra)
        return await self.wait(lambda frame: frame.get("ref") == ref)

    async def do(self, name: str, /, **data: Any) -> Json:
        result = await self.command(name, **data)
        assert result["op"] == "result", result
        return result

    async def wait(self, fits: Callable[[Json], bool], *, since: int = 0) -> Json:
        """The first frame that fits, from the given number on."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                for frame in self.frames[since:]:
                    if fits(frame):
                        return frame
                if self.closed is not None:
                    raise AssertionError(f"closed with {self.closed}: {self.frames[since:]}")
                self._came.clear()
                await self._came.wait()

    async def event(self, kind: str, *, since: int = 0, **data: Any) -> Json:
        """The first event of a type whose data has these."""

        def fits(frame: Json) -> bool:
            return (
                frame["op"] == "event"
                and frame["type"] == kind
                and all(frame["data"].get(name) == value for name, value in data.items())
            )

        return await self.wait(fits, since=since)

    async def reached(self, position: int) -> None:
        await self.wait(lambda frame: frame.get("op") == "event" and frame["position"] >= position)

    async def close_code(self) -> int:
        """Waits for the server to close."""
        # A timeout around it would end the reading itself.
        await asyncio.wait({self.reading}, timeout=WAIT_SECONDS)
        assert self.closed is not None, "it is still open"
        return self.closed[0]

    async def cut(self) -> None:
        """No goodbye: the connection is just gone."""
        self.connection.transport.abort()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.reading, WAIT_SECONDS)

    async def leave(self) -> None:
        await self.connection.close()
        await self.reading

    async def _read(self) -> None:
        try:
            async for text in self.connection:
                self.frames.append(json.loads(text))
                self._came.set()
        except ConnectionClosed:
            pass
        finally:
            closed = self.connection.close_code, self.connection.close_reason or ""
            self.closed = (closed[0] or 1006, closed[1])
            self._came.set()


@asynccontextmanager
async def connected(url: str, token: str | None, **options: Any) -> AsyncIterator[Client]:
    """`url` is the API's; the token goes into the header, if there is one."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with connect(
        url.replace("http", "ws", 1) + "/v1/stream",
        additional_headers=headers,
        max_size=MAX_BYTES,
        compression=None,
        ping_interval=None,
        open_timeout=WAIT_SECONDS,
        close_timeout=2,
        **options,
    ) as connection:
        client = Client(connection)
        try:
            yield client
        finally:
            with suppress(ConnectionClosed):
                await connection.close()
            await client.reading
