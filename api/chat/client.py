"""Between the stream, the screen and whoever types: one thing after the other, in one order.

A command waits in the outbox until the server has answered it; after a lost connection it is sent
again with the same idempotency key, and a message with the id that it was given here: it is done
once. One is under way at a time, so they are done in the order in which they were typed.
What is shown is received, and read; both are told when there is nothing else to do.
"""

import asyncio
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

from api.chat import terminal, typed
from api.chat.conversation import Message
from api.chat.errors import ChatError, Refused
from api.chat.link import Frame, Link, Lost
from api.chat.server import Json, Server
from api.chat.terminal import Moment, Screen
from api.chat.typed import Contact, Delete, Edit, Open, Order, React, Reply, Say, Wrong
from api.chat.view import View
from api.chat.wording import Line, announced, failed, named_in, note, one_line, short
from infra import clock

MAX_ITEMS = 1_000
MAX_CHUNKS = 8
# From here on what is typed waits.
OUTBOX_COMMANDS = 200
MAX_CHATS = 1_000
PAGE_CHATS = 100
HISTORY_MESSAGES = 30
# After an absence that could not be resumed.
RELOAD_MESSAGES = 100
RECEIVED_EVENTS = 200
RETRY_SECONDS = 1.0
LEAVE_SECONDS = 15.0
TICK_SECONDS = 0.5
TYPING_SECONDS = 3.0
TYPING_LAPSES_SECONDS = 6.0
# What passes by itself; all else is a refusal.
PASSING = frozenset({"unavailable", "read-model-behind", "rate-limited"})

# What names a message, which may be under way still.
NUMBERED = (Reply, Edit, Delete, React)

Then = Callable[[Json], Awaitable[None]]


class Typed(NamedTuple):
    chunk: str


class Failed(NamedTuple):
    error: BaseException


class Command(NamedTuple):
    """`what` is what failed, for whoever typed it; nothing for what nobody typed."""

    name: str
    data: Json
    key: str
    what: str = ""
    then: Then | None = None


Item = Frame | Lost | Typed | Failed


async def run(*, url: str, username: str, password: str, chat: str | None) -> int:
    """The exit code. Raises ChatError."""
    async with Server(url) as server:
        await server.log_in(username, password)
        try:
            client = Client(server)
            await client.read_state()
            wanted = await client.looked_up(chat) if chat else None
            with terminal.opened() as screen:
                return await client.run(screen, wanted)
        finally:
            await server.log_out()


class Client:
    """`read_state`, then `run`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._view = View(server.user_id)
        self._items: asyncio.Queue[Item] = asyncio.Queue(MAX_ITEMS)
        self._chunks: asyncio.Queue[str] = asyncio.Queue(MAX_CHUNKS)
        self._has_room = asyncio.Event()
        self._lines: deque[str] = deque()
        self._outbox: deque[Command] = deque()
        self._refs = 0
        self._under_way: int | None = None
        self._not_before = 0.0
        self._received = 0
        self._since_received = 0
        self._listed: list[str] = []
        self._typing: dict[str, float] = {}
        self._told_typing_at = 0.0
        self._lost = ""
        self._leaves_at: float | None = None

    async def run(self, screen: Screen, wanted: Command | str | None) -> int:
        self._screen = screen
        self._link = Link(self._server, self._view.position, self._items.put)
        await self._begin(wanted)
        tasks = [asyncio.create_task(self._kept(work)) for work in (self._link.run, self._pass_on)]
        loop = asyncio.get_running_loop()
        terminal.listen(
            lambda chunk: asyncio.run_coroutine_threadsafe(self._chunks.put(chunk), loop).result()
        )
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._leave)
        try:
            while not self._is_over:
                await self._step()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self._left_behind()

    async def _kept(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - raised again where somebody sees it
            await self._items.put(Failed(error))

    async def _pass_on(self) -> None:
        """What is typed, as long as there is room for what comes of it."""
        while True:
            chunk = await self._chunks.get()
            await self._has_room.wait()
            self._has_room.clear()
            await self._items.put(Typed(chunk))

    @property
    def _is_over(self) -> bool:
        if self._leaves_at is None:
            return False
        is_done = not self._outbox and not self._view.waiting
        return is_done or time.monotonic() > self._leaves_at

    def _left_behind(self) -> int:
        unsent = [command for command in self._outbox if command.what]
        if not unsent:
            return 0
        raise ChatError(f"not done within {LEAVE_SECONDS:g} s: {unsent[0].what} ({len(unsent)})")

    async def _step(self) -> None:
        await self._take(await self._next())
        await self._obey_lines()
        if self._lines:
            self._has_room.clear()
        else:
            self._has_room.set()
        if self._items.empty():
            await self._look_up_stale()
        await self._tell_received()
        await self._push()
        self._draw()

    async def _next(self) -> Item | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK_SECONDS):
                return await self._items.get()
        return None

    async def _take(self, item: Item | None) -> None:
        match item:
            case Frame():
                await self._hear(item.said)
            case Lost():
                self._lose(item)
            case Typed():
                await self._take_typed(item.chunk)
            case Failed():
                raise item.error
            case None:
                now = time.monotonic()
                self._typing = {who: end for who, end in self._typing.items() if end > now}

    # ---------------------------------------------------------------------- the stream

    async def _hear(self, said: Json) -> None:
        match said["op"]:
            case "event":
                await self._hear_event(said)
            case "ready":
                await self._hear_ready(said)
            case "result" | "problem":
                await self._hear_answer(said)
            case "presence":
                self._screen.show(self._view.presence(said))
            case "typing":
                self._hear_typing(said)
            case _:
                pass  # of a later version

    async def _hear_event(self, said: Json) -> None:
        for user_id in self._view.strangers(said):
            await self._get_to_know(user_id)
        if said["type"] == "message_sent":
            self._typing.pop(said["data"]["sender_id"], None)
        self._screen.show(self._view.reduce(said))
        self._since_received += 1

    async def _hear_ready(self, said: Json) -> None:
        if self._lost:
            self._screen.show([note("connected again")])
        self._lost = ""
        self._received = -1
        if said["resumed"]:
            return
        await self.read_state(said["position"])
        here = self._view.open
        if here is not None and here.chat_id in self._view.chats:
            await self._open(here.chat_id, RELOAD_MESSAGES)
        elif here is not None:
            self._view.forget(here.chat_id)
            self._screen.show([note("you are not in this chat any more")])

    def _lose(self, lost: Lost) -> None:
        self._under_way = None
        if not self._lost:
            pause = f"{lost.pause_seconds:.1f} s"
            self._screen.show([note(f"connection lost ({one_line(lost.why)}), again in {pause}")])
        self._lost = one_line(lost.why)

    def _hear_typing(self, said: Json) -> None:
        user_id = self._view.typing(said)
        if user_id is None:
            return
        if user_id not in self._typing:
            self._screen.show([announced(f"{self._view.name(user_id)} is typing")])
        self._typing[user_id] = time.monotonic() + TYPING_LAPSES_SECONDS

    async def _tell_received(self) -> None:
        if not self._link.is_live or self._received == self._view.position:
            return
        if self._items.empty() or self._since_received >= RECEIVED_EVENTS:
            self._received, self._since_received = self._view.position, 0
            await self._link.say("received", position=self._received)

    # ------------------------------------------------------------------------ commands

    async def _push(self) -> None:
        """The next command, if none is under way."""
        if not self._outbox:
            self._mark_read()
        now = time.monotonic()
        is_due = self._outbox and self._under_way is None and now >= self._not_before
        if is_due and self._link.is_live:
            command = self._outbox[0]
            self._refs += 1
            self._under_way = self._refs
            await self._link.say(
                "command",
                ref=self._refs,
                name=command.name,
                idempotency_key=command.key,
                data=command.data,
            )

    def _mark_read(self) -> None:
        due = self._view.to_be_read()
        if due is not None:
            self._do("mark-read", chat_id=due[0], up_to_message_id=due[1])

    def _do(self, name: str, what: str = "", then: Then | None = None, **data: Any) -> None:
        self._outbox.append(Command(name, data, clock.new_id(), what, then))

    async def _hear_answer(self, said: Json) -> None:
        if said["ref"] != self._under_way:
            return  # of a connection before: it is under way again
        self._under_way = None
        if said["op"] == "problem" and said["problem"]["code"] in PASSING:
            self._not_before = time.monotonic() + RETRY_SECONDS
            return
        command = self._outbox.popleft()
        if said["op"] == "problem":
            self._refused(command, said["problem"]["detail"])
        elif command.then is not None:
            await command.then(said)

    def _refused(self, command: Command, detail: str) -> None:
        self._view.waiting.pop(command.data.get("message_id", ""), None)
        if command.what:
            self._screen.show([failed(f"{command.what}: {one_line(detail)}")])

    # --------------------------------------------------------------------------- typed

    async def _take_typed(self, chunk: str) -> None:
        self._lines.extend(self._screen.take(chunk))
        now = time.monotonic()
        here = self._view.open
        if here and self._screen.is_composing and now - self._told_typing_at > TYPING_SECONDS:
            self._told_typing_at = now
            await self._link.say("typing", chat_id=here.chat_id)

    async def _obey_lines(self) -> None:
        """In order: a line waits for a chat that is being opened, and for the message it names."""
        while self._lines and self._is_free(order := typed.parse(self._lines[0])):
            self._lines.popleft()
            await self._obey(order)
        if self._screen.is_ended and not self._lines and self._leaves_at is None:
            self._leave()

    def _is_free(self, order: Order | None) -> bool:
        if len(self._outbox) >= OUTBOX_COMMANDS or any(one.then for one in self._outbox):
            return False
        is_known = not isinstance(order, NUMBERED) or self._view.numbered(order.number)
        return bool(is_known or not (self._outbox or self._view.waiting))

    async def _obey(self, order: Order | None) -> None:
        match order:
            case None:
                pass
            case Say() | Reply() | Edit() | Delete() | React():
                self._in_chat(order)
            case Open():
                await self._open_named(order.name)
            case Contact():
                await self._ask_contact(order.username)
            case typed.ListChats():
                self._list_chats()
            case typed.Who():
                await self._tell_who()
            case typed.Help():
                self._screen.show([note(one) for one in typed.HELP])
            case typed.Quit():
                self._lines.clear()
                self._leave()
            case Wrong():
                self._screen.show([failed(order.why)])

    def _leave(self) -> None:
        self._leaves_at = time.monotonic() + LEAVE_SECONDS

    def _in_chat(self, order: Say | Reply | Edit | Delete | React) -> None:
        here = self._view.open
        if here is None:
            self._screen.show([failed("no chat is open: /open CHAT")])
        elif isinstance(order, Say):
            self._send(here.chat_id, order.text, {})
        elif (message := self._view.numbered(order.number)) is None:
            self._screen.show([failed(f"there is no #{order.number} here")])
        elif isinstance(order, Reply):
            self._send(here.chat_id, order.text, {"reply_to_id": message.id})
        else:
            self._change(order, message)

    def _send(self, chat_id: str, content: str, extra: Json) -> None:
        """The id, made here, is the key too: however often it is sent, it is one message."""
        message_id = clock.new_id()
        self._view.waiting[message_id] = short(content)
        data = {"chat_id": chat_id, "content": content, "message_id": message_id, **extra}
        what = f"not sent: {short(content)}"
        self._outbox.append(Command("send-message", data, message_id, what))

    def _change(self, order: Edit | Delete | React, message: Message) -> None:
        number = f"#{message.number}"
        match order:
            case Edit():
                what = f"{number} is not edited"
                self._do("edit-message", what, message_id=message.id, content=order.text)
            case Delete():
                self._do("delete-message", f"{number} is not deleted", message_id=message.id)
            case React():
                name = "add-reaction" if order.is_added else "remove-reaction"
                what = f"no reaction to {number}"
                self._do(name, what, message_id=message.id, emoji=order.emoji)

    async def _tell_who(self) -> None:
        here = self._view.open
        for user_id in (here.members - self._view.people.keys()) if here else ():
            await self._get_to_know(user_id)
        self._screen.show(self._view.present())

    async def _ask_contact(self, username: str) -> None:
        found, _ = await self._server.get("/v1/users", prefix=username[:100], limit=100)
        folded = username.casefold()
        users = [one for one in found["items"] if one["username"].casefold() == folded]
        if not users:
            self._screen.show([failed(f"there is no user {one_line(username)}")])
            return
        self._view.meet(users[0])
        self._do("request-contact", f"no contact of {username}", user_id=users[0]["id"])

    # --------------------------------------------------------------------------- chats

    async def read_state(self, at_least: int = 0) -> None:
        """What there is, as of a position: the stream goes on from there."""
        state, _ = await self._server.get("/v1/state", at_least=at_least)
        self._view.begin(state)
        cursor = state["next_cursor"]
        while cursor and len(self._view.chats) < MAX_CHATS:
            page, as_of = await self._server.get(
                "/v1/chats", at_least=state["position"], cursor=cursor, limit=PAGE_CHATS
            )
            for row in page["items"]:
                self._view.know(row, as_of)
            cursor = page["next_cursor"]
        await self._get_to_know(self._view.user_id)
        self._listed = [chat.id for chat in self._view.by_activity()]

    async def looked_up(self, name: str) -> Command | str:
        """A chat's id, or what opens it. Raises ChatError."""
        found = self._view.find(name, self._listed)
        if len(found) > 1:
            handles = ", ".join(one.handle for one in found)
            raise ChatError(f"several chats are called {name}: {handles}")
        if found:
            return found[0].id
        contacts, _ = await self._server.get("/v1/contacts", status="accepted")
        for one in contacts["items"]:
            if one["user"]["username"].casefold() == name.casefold():
                what = f"no chat with {name}"
                data = {"user_id": one["user"]["id"]}
                return Command("open-direct-chat", data, clock.new_id(), what, self._open_new)
        raise ChatError(f"there is no chat {name}")

    async def _begin(self, wanted: Command | str | None) -> None:
        if wanted is None:
            self._list_chats()
        else:
            await self._go_to(wanted)

    async def _open_named(self, name: str) -> None:
        try:
            await self._go_to(await self.looked_up(name))
        except ChatError as error:
            self._screen.show([failed(one_line(str(error)))])

    async def _go_to(self, wanted: Command | str) -> None:
        if isinstance(wanted, Command):
            self._outbox.append(wanted)
        else:
            await self._open(wanted, HISTORY_MESSAGES)

    async def _open_new(self, result: Json) -> None:
        path = f"/v1/chats/{result['chat_id']}"
        row, as_of = await self._server.get(path, at_least=result["position"])
        self._view.know(row, as_of)
        await self._open(row["id"], HISTORY_MESSAGES)

    async def _open(self, chat_id: str, limit: int) -> None:
        """Each part at least as new as the one before; what is newer comes again as events, and
        changes nothing then."""
        is_open = self._view.open is not None and self._view.open.chat_id == chat_id
        path = f"/v1/chats/{chat_id}"
        try:
            people, as_of = await self._server.get(
                f"{path}/participants", at_least=self._view.position
            )
            page, as_of = await self._server.get(f"{path}/messages", at_least=as_of, limit=limit)
            rows = [await self._whole(row, as_of) for row in reversed(page["items"])]
        except Refused as error:
            self._screen.show([failed(one_line(str(error)))])
            return
        if not is_open:
            self._screen.clear()
            self._screen.show([self._heading(chat_id, len(people["items"]))])
        self._screen.show(self._view.show(chat_id, people["items"], rows))

    async def _whole(self, row: Json, as_of: int) -> Json:
        """By name what the page only counts, and all who are named."""
        path = f"/v1/messages/{row['id']}"
        reacted, recipients = [], []
        if row["reactions"]:
            reacted = (await self._server.get(f"{path}/reactions", at_least=as_of))[0]["items"]
        if "delivery" in row:
            recipients = (await self._server.get(f"{path}/delivery", at_least=as_of))[0]["items"]
        for user_id in named_in(row["metadata"].get("system", {})):
            if user_id not in self._view.people:
                await self._get_to_know(user_id)
        return {**row, "reacted": reacted, "recipients": recipients}

    async def _get_to_know(self, user_id: str) -> None:
        try:
            user, _ = await self._server.get(f"/v1/users/{user_id}", at_least=self._view.position)
        except Refused:
            user = {"id": user_id, "display_name": None}
        self._view.meet(user)

    async def _look_up_stale(self) -> None:
        for chat_id in list(self._view.stale):
            try:
                row, as_of = await self._server.get(
                    f"/v1/chats/{chat_id}", at_least=self._view.position
                )
            except Refused:
                self._view.forget(chat_id)
            else:
                self._screen.show(self._view.know(row, as_of))

    def _list_chats(self) -> None:
        chats = self._view.by_activity()
        self._listed = [chat.id for chat in chats]
        lines = [note(f"{at}  {self._view.listed(chat)}") for at, chat in enumerate(chats, 1)]
        nothing = note("no chats yet: /contact USERNAME, then /open USERNAME")
        self._screen.show(lines or [nothing])

    # -------------------------------------------------------------------------- showing

    def _heading(self, chat_id: str, people: int) -> Line:
        chat = self._view.chats[chat_id]
        return note(f"{self._view.title(chat)} ({chat.handle}), {people} people")

    def _draw(self) -> None:
        self._screen.draw(Moment(self._view, self._title(), self._status()))

    def _title(self) -> str:
        here = self._view.open
        if here is None:
            return f"{self._view.name(self._view.user_id)}: no chat is open"
        title = self._view.title(self._view.chats[here.chat_id])
        others = [self._view.person(one) for one in here.members if one != self._view.user_id]
        online = sum(one.status == "online" for one in others)
        return f"{title}: {online} of {len(others)} others online"

    def _status(self) -> str:
        if self._lost:
            return f"connection lost ({self._lost})"
        names = ", ".join(self._view.name(one) for one in self._typing)
        typing = f"{names} typing…" if names else ""
        unread = sum(chat.unread for chat in self._view.chats.values())
        return "  ".join(filter(None, [typing, f"{unread} unread elsewhere" if unread else ""]))
