"""The reference client: a `Reducer` kept current over connections that come and go.

It begins with a state, goes on from its own position wherever it connects, applies what comes
when it gets to it (what it had not got to when the connection broke is gone), and fetches what
its reducer wants. `applied` are the positions of all events that it got, over all connections.
"""

import asyncio
from collections import deque
from contextlib import AsyncExitStack

import httpx

from tests.api.served import Json, bearer, good
from tests.stream.client import Client, connected
from tests.stream.reducer import Reducer

WAIT_SECONDS = 60.0
POLL_SECONDS = 0.005
MAX_FETCHES = 100
ANOTHER_EPOCH = 99


class Gone(Exception):
    """The session has ended"""


class Reference:
    """`apis` are clients of the processes, `urls` their addresses."""

    def __init__(self, session: Json, apis: list[httpx.AsyncClient]) -> None:
        self.me: str = session["user_id"]
        self._session = session
        self._apis = apis
        self._stack = AsyncExitStack()
        self._inbox: deque[Json] = deque()
        self._seen = 0
        self.client: Client | None = None
        self.reducer = Reducer(self.me, {"position": 0, "chats": [], "contacts": []})
        self.began = 0
        self.applied: list[int] = []

    @property
    def position(self) -> int:
        return self.reducer.position

    # -------------------------------------------------------------------- connections

    async def begin(self, process: int, kind: int = 0) -> None:
        """Anew: from a state, however the server comes to say that there is no other way."""
        await self.cut()
        if kind == 0:
            self._take_state(await self.look(process, "/v1/state"))
            await self.resume(process)
            return
        client = await self._connect(process)
        fields = {"after": self.position, "epoch": ANOTHER_EPOCH} if kind == 2 else {}
        ready = await client.start(**fields)
        assert not ready["resumed"]
        self._forget_until(ready)
        self._take_state(await self.look(process, "/v1/state", ready["position"]))

    async def resume(self, process: int) -> None:
        await self.cut()
        await self._connect(process)
        await self.start()

    async def start_again(self) -> None:
        """On a connection that has started before, whether it is done with that or not."""
        await self.start()

    async def start(self) -> None:
        assert self.client is not None
        position = self.position
        ready = await self.client.start(after=position)
        assert ready["resumed"]
        assert ready["position"] >= position
        self._forget_until(ready)

    async def cut(self) -> None:
        """No goodbye; what came and was not looked at is lost."""
        if self.client is not None:
            await self.client.cut()
        await self.close()

    async def leave(self) -> None:
        if self.client is not None:
            await self.client.leave()
        await self.close()

    async def close(self) -> None:
        self.client = None
        self._inbox.clear()
        await self._stack.aclose()

    @property
    def is_open(self) -> bool:
        return self.client is not None and self.client.closed is None

    async def _connect(self, process: int) -> Client:
        url = str(self._apis[process].base_url)
        self.client = await self._stack.enter_async_context(
            connected(url, self._session["access_token"])
        )
        self._seen = 0
        return self.client

    def _forget_until(self, ready: Json) -> None:
        """What an earlier start brought will come again."""
        assert self.client is not None
        numbers = [n for n, frame in enumerate(self.client.frames) if frame is ready]
        self._seen = numbers[0] + 1
        self._inbox.clear()

    def _take_state(self, state: Json) -> None:
        self.reducer = Reducer(self.me, state)
        self.began = self.position
        self.applied = []

    # -------------------------------------------------------------------------- events

    def take(self, up_to: int | None = None) -> None:
        """Applies what has come, in the order it came."""
        if self.client is not None:
            came = self.client.frames[self._seen :]
            self._seen += len(came)
            self._inbox.extend(frame for frame in came if frame["op"] == "event")
        while self._inbox and (up_to is None or self._inbox[0]["position"] <= up_to):
            event = self._inbox.popleft()
            if event["position"] > self.began:
                self.reducer.apply(event)
                self.applied.append(event["position"])

    async def until(self, position: int, up_to: int | None = None) -> None:
        """Until the event at `position` is applied, and all that came by then up to `up_to`."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    self.take(up_to)
                    if position <= max(self.began, *self.applied[-1:], 0):
                        return
                    assert self.is_open, f"closed with {self.client and self.client.closed}"
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise AssertionError(f"{position} never came: at {self.position}") from None

    async def received(self) -> None:
        assert self.client is not None
        await self.client.say("received", position=self.position)

    # ------------------------------------------------------------------------- queries

    async def fetch(self, process: int) -> None:
        """What the reducer wants, as of its position or later."""
        for chat_id in list(self.reducer.wanted_chats):
            await self._fetch_chat(process, chat_id)
        for user_id in list(self.reducer.wanted_users):
            self.reducer.take_user(await self.look(process, f"/v1/users/{user_id}", self.position))

    async def _fetch_chat(self, process: int, chat_id: str) -> None:
        """The chat, and who is in it, as of one position. Not there: it was left since."""
        path, position = f"/v1/chats/{chat_id}", self.position
        for _ in range(MAX_FETCHES):
            chat = await self._get(process, path, position)
            people = await self._get(process, f"{path}/participants", position)
            if 404 in (chat.status_code, people.status_code):
                return
            position = max(_place(chat), _place(people))
            if _place(chat) == _place(people):
                members = {one["user"]["id"] for one in good(people)["items"]}
                self.reducer.take_chat(good(chat), members, position)
                return
        raise AssertionError("the chat and its participants never met at one position")

    async def look(self, process: int, path: str, position: int = 0) -> Json:
        return good(await self._get(process, path, position))

    async def _get(self, process: int, path: str, position: int) -> httpx.Response:
        headers = bearer(self._session) | {"Min-Log-Position": str(position)}
        response = await self._apis[process].get(path, headers=headers)
        if response.status_code == 401:
            raise Gone
        return response


def _place(response: httpx.Response) -> int:
    return int(response.headers["Log-Position"])
