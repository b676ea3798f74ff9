"""The API as one ASGI application, and how a process serves it.

Litestar routes; what an operation is stands in the tables of `api`'s modules (see
`api.operations`). Errors of every kind leave through `api.problems`.
"""

import asyncio
import signal
import socket
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
from litestar import Litestar, Request, asgi
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api import attachments, commands, openapi, problems, queries, scrape, sessions, status
from api.http import Door, Inbound, NoContent, Reply, problem_reply, unreadable
from api.operations import Call, Operation, caller_of
from api.ops import page
from api.origins import Origins
from api.parts import Parts, opened
from api.stream import stream
from api.stream.stream import Stream
from api.stream.wire import MAX_FRAME_BYTES, Socket
from infra import garbage, logs, scraping
from infra.ending import end
from infra.settings import Settings

GRACEFUL_STOP_SECONDS = 5
KEEP_ALIVE_SECONDS = 30
LISTEN_BACKLOG = 2048

DESCRIBED: tuple[Operation, ...] = (
    *commands.OPERATIONS,
    *sessions.OPERATIONS,
    *attachments.OPERATIONS,
    *queries.OPERATIONS,
    *status.OPERATIONS,
    *scrape.OPERATIONS,
)


def create_app(parts: Parts, live: Stream) -> ASGIApp:
    def refused(request: Request[Any, Any, Any], error: Exception) -> Any:
        request_id = Inbound(request.scope, request.receive).request_id
        refusal = problems.refusal_of(error, request_id, parts.logger)
        parts.metrics.problem(refusal.code)
        return _Sendable(problem_reply(refusal))

    scrape.watch_queues(parts)
    operations = (*DESCRIBED, *openapi.operations(DESCRIBED), *page.operations(parts))
    app = Litestar(
        [
            # First: where a path has none yet, Litestar makes one for the next handler alone.
            *(_options(path, methods) for path, methods in _methods(operations).items()),
            *(_route(parts, operation) for operation in operations),
            asgi(stream.PATH, copy_scope=False)(live),
        ],
        openapi_config=None,
        logging_config=None,
        exception_handlers={Exception: refused},
        request_max_body_size=None,  # each operation has its own limit
    )
    unlimited = frozenset(one.path for one in operations if one.rate_limit == "none")
    origins = Origins(parts.settings.allowed_origins)
    door = Door(
        app,
        parts.metrics,
        parts.rate_limits,
        origins,
        parts.logger,
        unlimited=unlimited,
        tracer=parts.tracer,
    )
    proxies = parts.settings.trusted_proxies
    return _behind(door, proxies) if proxies else door


def _behind(door: Any, proxies: str) -> Any:
    """The client's address is what these proxies say it is."""
    return ProxyHeadersMiddleware(door, proxies)


async def serve(settings: Settings, *, host: str, port: int, fd: int | None) -> None:
    """Until SIGINT or SIGTERM; requests under way get GRACEFUL_STOP_SECONDS to end.

    Raises Stopped where the log is not the one any more that this process knows.
    """
    async with (
        opened(settings) as parts,
        stream.opened(parts) as live,
        scraping.served(settings.metrics_address, partial(scrape.own, parts)),
    ):
        logs.forward(parts.logger)
        # Given the descriptor, uvicorn takes it for a Unix socket: without TCP_NODELAY each answer
        # on a kept-alive connection would wait 40 ms, and no client's address would be known.
        sockets = None if fd is None else [socket.socket(fileno=fd)]
        server = Server(config(create_app(parts, live), host=host, port=port))
        garbage.settle()
        await _serve(server, sockets, live)


async def _serve(server: "Server", sockets: list[socket.socket] | None, live: Stream) -> None:
    serving = asyncio.create_task(server.serve(sockets=sockets))
    ending = asyncio.create_task(live.ends())
    try:
        await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        if ending.done():
            await ending
    finally:
        await end(serving, ending)


def config(app: ASGIApp, *, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Protocol,
        ws=Socket,
        ws_max_size=MAX_FRAME_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        lifespan="off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        backlog=LISTEN_BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACEFUL_STOP_SECONDS,
    )


class Protocol(HttpToolsProtocol):
    """HTTP/1.1, where what is no HTTP at all is a problem like any other."""

    def send_400_response(self, msg: str) -> None:
        self.transport.write(unreadable())
        self.transport.close()


class Server(uvicorn.Server):
    """Leaves by returning: uvicorn's own would raise the signal again, with our parts open."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


def _route(parts: Parts, operation: Operation) -> HTTPRouteHandler:
    async def handle(request: Request[Any, Any, Any]) -> Reply:
        inbound = Inbound(request.scope, request.receive)
        caller = await caller_of(operation, parts, inbound)
        if caller is not None:
            parts.rate_limits.signed_in(request.scope, caller.user_id)
        if operation.rate_limit == "password":
            parts.rate_limits.with_password(request.scope)
        return await operation.handle(Call(parts, inbound, caller))

    return HTTPRouteHandler(
        operation.path, http_method=_served(operation), status_code=200, name=operation.name
    )(handle)


def _served(operation: Operation) -> Any:
    return ["GET", "HEAD"] if operation.method == "GET" else [operation.method]


def _methods(operations: tuple[Operation, ...]) -> dict[str, list[str]]:
    methods: dict[str, list[str]] = defaultdict(list)
    for operation in operations:
        methods[operation.path] += _served(operation)
    return methods


def _options(path: str, methods: list[str]) -> HTTPRouteHandler:
    allowed = ", ".join(sorted([*methods, "OPTIONS"])).encode()

    async def handle() -> Reply:
        return NoContent([(b"allow", allowed)])

    return HTTPRouteHandler(path, http_method=["OPTIONS"], status_code=200)(handle)


class _Sendable:
    """What Litestar wants of an exception handler."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def to_asgi_response(self, **_: Any) -> Reply:
        return self._reply
