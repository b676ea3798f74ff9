"""The stream of one process: opened with it, and the ASGI application of its sockets."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from litestar.enums import ScopeType
from litestar.types import Receive, Scope, Send

from api.http import header, problem_reply
from api.operations import BEARER
from api.origins import Origins
from api.parts import Parts
from api.problems import Malformed, RateLimited, ServiceUnavailable
from api.stream import wire
from api.stream.catch_up import CatchUp
from api.stream.connection import AUTHENTICATE_SECONDS, Connection
from api.stream.frames import Typed, encode
from api.stream.gateway import Gateway
from api.stream.names import Names
from api.stream.places import Places
from api.stream.presence import Leases, Presence
from api.stream.readings import Readings
from api.stream.receipts import Pending, Recorder
from api.stream.services import Services
from api.stream.showing import Showing
from api.stream.sockets import Open, Sockets
from api.stream.typing import TypingNews
from api.stream.wire import SOCKET, Socket
from domain.ids import ChatId, GatewayId, UserId
from domain.refusals import Forbidden, Refusal
from infra import clock
from infra.ending import end
from infra.errors import Stopped
from infra.history import Witness
from infra.logs import Logger, traceback_of

PATH = "/v1/stream"
PRESENCE_FLUSH_SECONDS = 0.25
SWEEP_SECONDS = 1.0
RESTART_SECONDS = 1.0
MAX_RETRY_AFTER_SECONDS = 10
LAST_FLUSH_SECONDS = 3.0


class Stream:
    """An ASGI application for one path; made by `opened`."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._origins = Origins(services.parts.settings.allowed_origins)
        self._stop: Stopped | None = None
        self._stopped = asyncio.Event()

    async def ends(self) -> None:
        """When an operator has to act, or the process to begin anew: raises Stopped."""
        await self._stopped.wait()
        assert self._stop is not None
        raise self._stop

    def stop(self, stop: Stopped) -> None:
        self._stop = stop
        self._stopped.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.WEBSOCKET:
            refusal = Malformed("this is a WebSocket: ask for an upgrade to it")
            self._services.parts.metrics.problem(refusal.code)
            await problem_reply(refusal)(scope, receive, send)
            return
        await receive()  # websocket.connect
        refused = self._refusal(scope)
        if refused is not None:
            self._services.parts.metrics.problem(refused.code)
            await problem_reply(refused)(scope, receive, _as_websocket(send))
            return
        socket: Socket = scope["extensions"][SOCKET]  # type: ignore[index,assignment]
        connection = Connection(self._services, socket, scope)
        socket.listener = connection
        late = asyncio.get_running_loop().call_later(AUTHENTICATE_SECONDS, connection.expire)
        try:
            await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
            self._authenticate_by_header(scope, connection)
            while (message := await receive())["type"] != "websocket.disconnect":
                pass
            self._services.parts.metrics.stream.end(message["code"])
        finally:
            late.cancel()
            connection.closed()

    def show_typing(self, chat_id: ChatId, user_id: UserId) -> None:
        gateway = self._services.gateway
        room = gateway.rooms.get(chat_id)
        if room is not None and user_id in room.members:
            frame = encode(Typed(chat_id=chat_id, user_id=user_id))
            for connection in gateway.connections_of(room.members - {user_id}):
                connection.deliver(frame)

    def end_sessions(self, session_ids: Iterable[str]) -> None:
        for one in self._services.sockets.of_sessions(session_ids):
            one.end_session()

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Before anything is accepted."""
        if not self._origins.may_open(scope):
            return Forbidden("pages of this origin may not open the stream")
        services = self._services
        if services.sockets.are_too_many:
            # Each at another time, so that they do not come back at once.
            later = random.randint(1, MAX_RETRY_AFTER_SECONDS)
            return ServiceUnavailable("too many are connected", retry_after_seconds=later)
        try:
            services.parts.rate_limits.arrived(scope)
        except RateLimited as refusal:
            return refusal
        return None

    def _authenticate_by_header(self, scope: Scope, connection: Connection) -> None:
        given = header(scope, b"authorization")
        if given is None:
            return
        if given[: len(BEARER)].lower() == BEARER:
            connection.authenticate(given[len(BEARER) :].strip().decode("latin-1"))
        else:
            connection.end(wire.NOT_AUTHENTICATED, "expected `Bearer ACCESS_TOKEN`")

    async def sweep(self) -> None:
        """For as long as the process lives."""
        sockets, gateway, parts = (
            self._services.sockets,
            self._services.gateway,
            self._services.parts,
        )
        heartbeat = parts.settings.stream_heartbeat_seconds
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, heartbeat / 4))
            sockets.sweep(heartbeat, _ping, _close_silent)
            parts.metrics.show("messenger_stream_sockets", len(sockets))
            parts.metrics.show("messenger_stream_position", gateway.position)
            parts.metrics.show("messenger_stream_rooms", len(gateway.rooms))

    async def send_presence(self) -> None:
        """For as long as the process lives."""
        while True:
            await asyncio.sleep(PRESENCE_FLUSH_SECONDS)
            self._services.gateway.send_presence()


@asynccontextmanager
async def opened(parts: Parts) -> AsyncIterator[Stream]:
    """Raises what the database raises, or Stopped."""
    gateway_id, settings, logger = GatewayId(clock.new_id()), parts.settings, parts.logger
    leases = Leases(parts.pool, parts.executor)
    # What it shows needs the stream, which needs all of these: it is told where to.
    typing = TypingNews(
        parts.bus, gateway_id, lambda chat_id, user_id: stream.show_typing(chat_id, user_id)
    )
    services = _services(parts, gateway_id, leases, typing)
    stream, gateway, presence = Stream(services), services.gateway, services.presence
    recorder = Recorder(
        services.pending,
        parts.executor,
        gateway_id,
        logger,
        flush_seconds=settings.receipt_flush_ms / 1000,
    )
    parts.metrics.show("messenger_stream_sockets_limit", settings.stream_sockets)
    await gateway.begin()
    await typing.listen()
    parts.ended.listen(stream.end_sessions)
    work = (
        gateway.run,
        recorder.run,
        presence.run,
        partial(leases.reap_forever, logger),
        stream.sweep,
        stream.send_presence,
    )
    tasks = [asyncio.create_task(_kept_up(run, stream, logger)) for run in work]
    try:
        yield stream
    finally:
        await end(*tasks)
        presence.stop()
        with suppress(TimeoutError):  # who has what is said again
            async with asyncio.timeout(LAST_FLUSH_SECONDS):
                await recorder.flush()


def _services(parts: Parts, gateway_id: GatewayId, leases: Leases, typing: TypingNews) -> Services:
    settings, logger, pending = parts.settings, parts.logger, Pending()
    readings = Readings(parts.pool, parts.keyring, parts.read_models)
    showing = Showing(readings, Names(parts.executor, parts.keyring), parts.objects, logger)
    witness = Witness(parts.pool, parts.bus)
    gateway = Gateway(readings, showing, pending, parts.bus, witness, logger, parts.metrics.stream)
    return Services(
        parts=parts,
        readings=readings,
        gateway=gateway,
        catch_up=CatchUp(readings, showing, gateway),
        pending=pending,
        presence=Presence(
            leases, gateway_id, logger, grace_seconds=settings.presence_grace_seconds
        ),
        typing=typing,
        sockets=Sockets(
            max_sockets=settings.stream_sockets, max_of_user=settings.stream_sockets_of_user
        ),
        places=Places(),
    )


async def _kept_up(run: Callable[[], Awaitable[None]], stream: Stream, logger: Logger) -> None:
    """Begins it again should it ever end: sockets that nobody serves would look alive. Unless an
    operator has to act."""
    while True:
        try:
            await run()
        except Stopped as stop:
            stream.stop(stop)
            return
        except Exception as error:  # noqa: BLE001
            logger.error("stream_work_ended", traceback=traceback_of(error))
        await asyncio.sleep(RESTART_SECONDS)


def _ping(one: Open) -> None:
    one.ping()


def _close_silent(one: Open) -> None:
    one.end(wire.TOO_SLOW, "nothing was heard for two heartbeats")


def _as_websocket(send: Send) -> Send:
    """A whole HTTP response instead of an acceptance (ASGI's WebSocket Denial Response)."""

    async def send_denial(message: Any) -> None:
        message["type"] = message["type"].replace("http.", "websocket.http.", 1)
        await send(message)

    return send_denial
