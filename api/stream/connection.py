"""One client: authenticates, starts, says what it has, sends commands.

Whatever comes in is looked at at once, in order; what takes time is a task of the connection's:
one that looks at its token, one that starts it, one that runs its commands, one after the other.
A client that sends faster than it is served is not read for a while; one that sends what is no
operation, or at the wrong time, is closed.
"""

import asyncio
import time
from collections import deque
from typing import Any

from api import problems
from api.commands import answer, run_named
from api.http import Inbound
from api.operations import caller_with
from api.stream import frames, wire
from api.stream.catch_up import Missed
from api.stream.frames import (
    Authenticate,
    Malformed,
    Ping,
    Pong,
    Ready,
    Received,
    Refused,
    RunCommand,
    Start,
    Typing,
)
from api.stream.places import Crowded, Place
from api.stream.services import Services
from api.stream.wire import Socket
from domain.ids import ChatId, UserId
from domain.refusals import Refusal
from infra import clock
from infra.database import DOWN
from infra.ending import end
from infra.errors import MessengerError
from infra.lanes import Lane
from infra.logs import traceback_of
from infra.tokens import Caller

AUTHENTICATE_SECONDS = 5.0
LAST_ANSWER_SECONDS = 0.5
START_TIMEOUT_SECONDS = 120.0
REACH_SECONDS = 10.0
PROMPT_SECONDS = 0.25
DRAIN_SECONDS = 30.0
MAX_HELD_BYTES = 8 * 1024 * 1024
MAX_WAITING_FRAMES = 1_000
MAX_WAITING_BYTES = 2 * wire.MAX_FRAME_BYTES
MAX_WAITING_COMMANDS = 64
SEND = "send-message"
REPLY = b'"reply_to'
# A bucket of frames: so many at once, then so many a second.
FRAMES_BURST = 2_000
FRAMES_PER_SECOND = 500.0
# How much of a catch-up is written before it is looked whether the client reads.
PIECE_BYTES = 128 * 1024


class _Away(Exception):
    """The client is gone, or does not read."""


class Connection:
    """Told by its socket (`received`, `heard`) and by the gateway (`deliver`, `restart`)."""

    def __init__(self, services: Services, socket: Socket, scope: Any) -> None:
        self._services = services
        self._metrics = services.parts.metrics.stream
        self._socket = socket
        self._scope = scope
        self._caller: Caller | None = None
        self._place = Place(services.places)
        self._is_started = False
        self._held: deque[bytes] | None = None
        self._held_bytes = 0
        self._authenticating: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._early: deque[bytes] = deque()
        self._early_bytes = 0
        self._commands: deque[RunCommand] = deque()
        self._lane = Lane()
        self._received = 0
        self._session_has_ended = False
        self._frames_left = float(FRAMES_BURST)
        self._frames_at = time.monotonic()
        self.heard_at = time.monotonic()
        self.pinged_at = 0.0
        services.sockets.add(self)

    @property
    def user_id(self) -> UserId:
        assert self._caller is not None, "nothing is delivered before the user is known"
        return self._caller.user_id

    def end(self, code: int, reason: str) -> None:
        self._socket.end(code, reason)

    def end_session(self) -> None:
        """A command that ended it itself is answered first, if that does not take long."""
        self._session_has_ended = True
        if self._running is None:
            self.end(wire.SESSION_ENDED, "the session has ended")
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(
                LAST_ANSWER_SECONDS, self.end, wire.SESSION_ENDED, "the session has ended"
            )

    def ping(self) -> None:
        self._write(frames.PING)

    def closed(self) -> None:
        """The socket is gone; a command that is under way still comes to its end."""
        for task in (self._authenticating, self._starting):
            if task is not None:
                task.cancel()
        self._commands.clear()
        self._services.sockets.remove(self, self._caller)
        if self._caller is not None:
            self._unsubscribe()
            self._services.presence.went(self.user_id)

    # -------------------------------------------------------------- told by the gateway

    def deliver(self, frame: bytes) -> None:
        """At once, or held while the client still gets what came before."""
        if self._held is None:
            self._write(frame)
            return
        self._held.append(frame)
        self._held_bytes += len(frame)
        if self._held_bytes > MAX_HELD_BYTES:
            self._held.clear()
            self.end(wire.TOO_SLOW, "too much happened while catching up: resume")

    def restart(self) -> None:
        self.end(wire.SERVER_RESTARTING, wire.return_reason())

    def _write(self, frame: bytes) -> None:
        if not self._socket.push(frame):
            self.end(wire.TOO_SLOW, "too much waits to be read: resume")

    # --------------------------------------------------------------- told by the socket

    def heard(self) -> None:
        self.heard_at = time.monotonic()

    def received(self, frame: bytes) -> None:
        if not self._socket.is_open or self._session_has_ended:
            return
        self.pay()
        if self._authenticating is not None:
            self._wait_for_token(frame)
            return
        try:
            self._take(frames.decode(frame))
        except Malformed as error:
            self.end(wire.MALFORMED, str(error))

    @property
    def is_full(self) -> bool:
        return len(self._commands) >= MAX_WAITING_COMMANDS

    def pay(self) -> None:
        now = time.monotonic()
        regained = (now - self._frames_at) * FRAMES_PER_SECOND
        self._frames_left = min(float(FRAMES_BURST), self._frames_left + regained) - 1
        self._frames_at = now
        if self._frames_left < 0:
            self._socket.pause(-self._frames_left / FRAMES_PER_SECOND + wire.PAUSE_SECONDS)

    def _wait_for_token(self, frame: bytes) -> None:
        self._early.append(frame)
        self._early_bytes += len(frame)
        if len(self._early) > MAX_WAITING_FRAMES or self._early_bytes > MAX_WAITING_BYTES:
            self.end(wire.MALFORMED, "too much before the token was looked at")

    def _take(self, operation: frames.Operation) -> None:
        """Raises Malformed for what comes at the wrong time."""
        match operation:
            case Ping():
                self._write(frames.PONG)
            case Pong():
                pass
            case Authenticate():
                self.authenticate(operation.token)
            case _ if self._caller is None:
                self.end(wire.NOT_AUTHENTICATED, "authenticate first")
            case Start():
                self._start(operation)
            case RunCommand():
                self._take_command(operation)
            case _ if self._starting is None:
                raise Malformed("start first")
            case Received():
                self._received = max(self._received, operation.position)
                self._mark_received()
            case Typing():
                self._tell_typing(operation.chat_id)

    def _mark_received(self) -> None:
        """As far as this process has routed; said before the start is through, it is kept."""
        if self._is_started:
            up_to = min(self._received, self._services.gateway.position)
            self._received = 0
            self._services.pending.received(self.user_id, up_to)

    def _log(self, name: str, error: Exception) -> None:
        self._services.parts.logger.error(name, traceback=traceback_of(error))

    # ------------------------------------------------------------------ authentication

    def expire(self) -> None:
        """Called when a client has had AUTHENTICATE_SECONDS."""
        if self._caller is None:
            self.end(wire.NOT_AUTHENTICATED, f"no token within {AUTHENTICATE_SECONDS:g} s")

    def authenticate(self, token: str) -> None:
        self._authenticating = asyncio.create_task(self._look_at(token))

    async def _look_at(self, token: str) -> None:
        parts = self._services.parts
        try:
            caller = await caller_with(token, parts)
            if self._caller is None:
                self._sign_in(caller)
            elif caller.user_id != self._caller.user_id:
                self.end(wire.NOT_AUTHENTICATED, "this is another user's token")
            # It may have ended between the look and the listing.
            if await parts.ended.has(caller.session_id):
                self.end(wire.SESSION_ENDED, "the session has ended")
        except Refusal as refusal:
            self.end(wire.NOT_AUTHENTICATED, refusal.detail)
        except (MessengerError, *DOWN):
            self.end(wire.TRY_AGAIN_LATER, "whether the token holds can't be known now")
        except Exception as error:  # noqa: BLE001
            self._log("authentication_failed", error)
            self.end(wire.TRY_AGAIN_LATER, "whether the token holds can't be known now")
        self._authenticating = None
        while self._early and self._authenticating is None:
            frame = self._early.popleft()
            self._early_bytes -= len(frame)
            self.received(frame)

    def _sign_in(self, caller: Caller) -> None:
        if not self._socket.is_open:
            return
        if not self._services.sockets.sign_in(self, caller):
            self.end(wire.TRY_AGAIN_LATER, "this user has too many connections")
        else:
            self._caller = caller
            self._services.presence.came(caller.user_id)

    # ------------------------------------------------------------------------- starting

    def _start(self, start: Start) -> None:
        """Ends one that is under way: a client can't know when its catch-up is complete."""
        self._starting = asyncio.create_task(self._starts(start, self._starting))

    def _unsubscribe(self) -> None:
        if self._is_started:
            self._is_started = False
            self._services.gateway.unsubscribe(self)
        self._held = None

    async def _starts(self, start: Start, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await end(before)
        self._unsubscribe()
        try:
            await self._place.take()
        except TimeoutError:
            self.end(wire.TRY_AGAIN_LATER, "too many start at once")
            return
        try:
            # It costs at least what a query does.
            self._services.parts.rate_limits.signed_in(dict(self._scope), self.user_id)
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                await self._resume(start)
        except _Away:
            self.end(wire.TOO_SLOW, "what was missed is not read: resume")
        except (MessengerError, TimeoutError, Refusal, *DOWN):
            self.end(wire.TRY_AGAIN_LATER, "what was missed can't be read now")
        except Exception as error:  # noqa: BLE001 - a client that is not answered would wait for ever
            self._log("start_failed", error)
            self.end(wire.TRY_AGAIN_LATER, "it could not be started")
        finally:
            self._place.give_back()

    async def _resume(self, start: Start) -> None:
        began, gateway = time.monotonic(), self._services.gateway
        after = await self._served_from(start)
        generation = gateway.generation
        found = await gateway.enter(self.user_id, since=after)
        try:
            # What the client did before it asked to start is not news to it.
            async with asyncio.timeout(REACH_SECONDS):
                await gateway.reached(found.position)
            async with gateway.turn:
                if gateway.generation != generation:
                    self.restart()
                    return
                position = gateway.position
                self._held, self._held_bytes = deque(), 0
                gateway.subscribe(self, is_fresh=after is None)
                self._is_started = True
                self._mark_received()
        finally:
            gateway.exit(self.user_id)
        self._write(frames.encode(self._ready(position, resumed=after is not None)))
        self._metrics.starts.labels("fresh" if after is None else "resumed").inc()
        if after is not None:
            # Subscribing takes its time: what the user joined meanwhile is missed as well.
            found.spans.add(
                await self._services.readings.own_moves(
                    self.user_id, after=found.position, up_to=position
                )
            )
            missed = Missed(self.user_id, found.spans, after, position)
            async for page in self._services.catch_up.frames(missed):
                await self._write_page(page)
            self._metrics.catch_up_seconds.observe(time.monotonic() - began)
        await self._release()

    async def _served_from(self, start: Start) -> int | None:
        """Where the catch-up begins; None if there can be none."""
        if start.after is None:
            return None
        head = await self._services.gateway.sure_head()
        if head is None:
            return None
        oldest = head.position - self._services.parts.settings.stream_catch_up_events
        # Whoever does not say of which epoch, may mean the first.
        epoch = 1 if start.epoch is None else start.epoch
        if epoch != head.epoch or not oldest <= start.after <= head.position:
            return None
        return start.after

    def _ready(self, position: int, *, resumed: bool) -> Ready:
        settings = self._services.parts.settings
        return Ready(
            position=position,
            epoch=self._services.gateway.epoch,
            resumed=resumed,
            heartbeat_ms=int(settings.stream_heartbeat_seconds * 1000),
        )

    async def _write_page(self, page: list[bytes]) -> None:
        """Raises _Away."""
        written = 0
        for frame in page:
            self._write(frame)
            written += len(frame)
            if written > PIECE_BYTES:
                written = 0
                await self._drained()
        await self._drained()

    async def _drained(self) -> None:
        try:
            async with asyncio.timeout(PROMPT_SECONDS):
                await self._socket.drained()
        except TimeoutError:
            await self._waited_for()
        if not self._socket.is_open:
            raise _Away

    async def _waited_for(self) -> None:
        try:
            async with self._place.lent(), asyncio.timeout(DRAIN_SECONDS):
                await self._socket.drained()
        except (TimeoutError, Crowded):
            raise _Away from None

    async def _release(self) -> None:
        """What came meanwhile; from then on it comes as it happens."""
        while self._held:
            held, self._held, self._held_bytes = list(self._held), deque(), 0
            await self._write_page(held)
        self._held = None

    # -------------------------------------------------------------- commands and typing

    def _take_command(self, run: RunCommand) -> None:
        self._commands.append(run)
        if self.is_full:
            self._socket.pause(wire.PAUSE_SECONDS)
        if self._running is None:
            self._running = asyncio.create_task(self._run_commands())

    async def _run_commands(self) -> None:
        try:
            while self._commands and not self._session_has_ended:
                together = self._next_together()
                outcomes = await asyncio.gather(*(self._outcome(run) for run in together))
                self._write(b"".join(outcomes))
        finally:
            self._running = None
        if self._session_has_ended:
            self.end_session()

    def _next_together(self) -> list[RunCommand]:
        """The next command, and those after it that need not wait until it is written."""
        together = [self._commands.popleft()]
        while self._commands and _is_plain(together[-1]) and _is_plain(self._commands[0]):
            together.append(self._commands.popleft())
        return together

    async def _outcome(self, run: RunCommand) -> bytes:
        parts, scope = self._services.parts, dict(self._scope)
        scope["request_id"] = clock.new_id()
        inbound = Inbound(scope, _nothing)  # type: ignore[arg-type]
        try:
            parts.rate_limits.signed_in(scope, self.user_id)
            done = await run_named(
                parts,
                inbound,
                self._caller,
                run.name,
                run.data,
                run.idempotency_key,
                self._lane,
            )
            return frames.result(run.ref, answer(done))
        except Exception as error:  # noqa: BLE001 - told to the client, as over HTTP
            refusal = problems.refusal_of(error, inbound.request_id, parts.logger)
            parts.metrics.problem(refusal.code)
            return frames.encode(Refused(ref=run.ref, problem=problems.problem(refusal)))

    def _tell_typing(self, chat_id: ChatId) -> None:
        """To a chat that the user may write to; else nobody hears of it, nor the user why."""
        gateway = self._services.gateway
        room = gateway.rooms.get(chat_id)
        if room is None or self.user_id not in room.members:
            return
        others = room.members - {self.user_id}
        if room.is_direct and not all(
            gateway.people.may_talk(self.user_id, other) for other in others
        ):
            return
        self._services.typing.tell(chat_id, self.user_id)


def _is_plain(run: RunCommand) -> bool:
    """A message that rests on no other: what it replies to may still be on its way."""
    return run.name == SEND and REPLY not in bytes(run.data)


async def _nothing() -> Any:
    raise AssertionError("a command on the stream has no body to read")
