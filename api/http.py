"""The thin layer between ASGI and the operations: replies, bodies, parameters, the door.

Operations get a `Call` and answer a `Reply`. The `Door` stands around the whole application:
it gives every response its Request-Id and every request its line in the metrics, and turns away
addresses that are over their limit. It is plain ASGI, because it is paid for by each message
sent.
"""

import re
import time
from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from api import problems, rate_limits
from api.metrics import METHODS, Metrics
from api.origins import SECURITY, Origins
from api.problems import Headers, Malformed, RateLimited, TooLarge, UnsupportedMedia
from api.rate_limits import RateLimits
from domain.refusals import Invalid, NotFound, Refusal
from infra import clock
from infra.logs import Logger
from infra.tracing import Tracer

JSON = b"application/json"
MAX_QUERY_PARAMETERS = 50
MAX_POSITION = 2**63 - 1
SLOW_SECONDS = 1.0

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_WHOLE = re.compile(r"[0-9]{1,19}")


class Reply:
    """A whole response; being an ASGI application, Litestar sends it as it is."""

    __slots__ = ("_body", "_headers", "_status")

    def __init__(
        self, status: int, body: bytes, headers: Headers | None = None, content_type: bytes = JSON
    ) -> None:
        self._status = status
        self._body = body
        self._headers = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            *(headers or ()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self._status, "headers": self._headers}
        )
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


class NoContent(Reply):
    """204 has neither a body nor a word about one."""

    __slots__ = ()

    def __init__(self, headers: Headers | None = None) -> None:
        super().__init__(204, b"")
        self._headers = headers or []


def json_reply(answer: Any, *, status: int = 200, headers: Headers | None = None) -> Reply:
    return Reply(status, msgspec.json.encode(answer), headers)


def log_position(position: int) -> tuple[bytes, bytes]:
    return (b"log-position", b"%d" % position)


def problem_reply(refusal: Refusal) -> Reply:
    return Reply(
        refusal.status,
        msgspec.json.encode(problems.problem(refusal)),
        problems.headers(refusal),
        problems.CONTENT_TYPE,
    )


def unreadable() -> bytes:
    """The whole response to what can't be read as HTTP, and so never becomes a call."""
    body = msgspec.json.encode(problems.problem(Malformed("this is not HTTP/1.1")))
    head = (
        b"HTTP/1.1 400 Bad Request",
        b"content-type: " + problems.CONTENT_TYPE,
        b"content-length: %d" % len(body),
        b"request-id: " + clock.new_id().encode(),
        b"cache-control: no-store",
        *(b"%s: %s" % one for one in SECURITY),
        b"connection: close",
    )
    return b"\r\n".join((*head, b"", body))


def header(scope: Scope, name: bytes) -> bytes | None:
    """The header's first value; names are lower case, as ASGI has them."""
    return next((value for key, value in scope["headers"] if key == name), None)


class Inbound:
    """What came in: headers, query parameters, path parameters, body."""

    __slots__ = ("__dict__", "_receive", "scope")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self._receive = receive

    @property
    def request_id(self) -> str:
        request_id: str = self.scope["request_id"]  # type: ignore[typeddict-item]
        return request_id

    def header(self, name: bytes) -> bytes | None:
        return header(self.scope, name)

    def id(self, name: str) -> str:
        """An id from the path; what is none names nothing that there could be."""
        value: str = self.scope["path_params"][name]
        if not is_id(value):
            raise NotFound("ids are lowercase UUIDs: there is nothing here")
        return value

    @cached_property
    def parameters(self) -> dict[str, str]:
        """Raises Invalid."""
        try:
            pairs = parse_qsl(
                self.scope["query_string"].decode("ascii"),
                keep_blank_values=True,
                errors="strict",
                max_num_fields=MAX_QUERY_PARAMETERS,
            )
        except ValueError:
            raise Invalid("the query parameters can't be read", field="?") from None
        for name, value in pairs:
            if "\0" in value:
                raise Invalid("a text may not hold the NUL character", field=name)
        return dict(pairs)

    def whole(self, name: str, *, default: int, low: int, high: int) -> int:
        given = self.parameters.get(name)
        return default if given is None else whole(given, name, low=low, high=high)

    @property
    def min_position(self) -> int:
        """What the caller has seen already; 0 where nothing is asked for."""
        position = self.whole("min_position", default=0, low=0, high=MAX_POSITION)
        given = self.header(b"min-log-position")
        if given is None:
            return position
        text = given.decode("latin-1")
        return max(position, whole(text, "Min-Log-Position", low=0, high=MAX_POSITION))

    async def json_body(self, limit_bytes: int) -> bytes:
        """Raises UnsupportedMedia, TooLarge before reading it all, or Malformed if it is cut."""
        content_type = self.header(b"content-type")
        if content_type and not _is_json(content_type):
            raise UnsupportedMedia("the body has to be application/json")
        length = self.header(b"content-length")
        if length is not None and length.isdigit() and int(length) > limit_bytes:
            raise _too_large(limit_bytes)
        return await self._body(limit_bytes)

    async def _body(self, limit_bytes: int) -> bytes:
        body: bytes = b""
        async for chunk in self.chunks(limit_bytes):
            body = body + chunk
        return body

    async def chunks(self, limit_bytes: int) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises TooLarge, or Malformed if it is cut."""
        read_bytes, is_more = 0, True
        while is_more:
            message: Any = await self._receive()
            if message["type"] == "http.disconnect":
                raise Malformed("the body ended early")
            read_bytes += len(message["body"])
            if read_bytes > limit_bytes:
                raise _too_large(limit_bytes)
            is_more = message.get("more_body", False)
            if message["body"]:
                yield message["body"]


def is_id(text: str) -> bool:
    return _UUID.fullmatch(text) is not None


def whole(text: str, name: str, *, low: int, high: int) -> int:
    """Raises Invalid."""
    if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
        raise Invalid(f"expected a whole number from {low} to {high}", field=name)
    return int(text)


def _is_json(content_type: bytes) -> bool:
    media_type = content_type.partition(b";")[0].strip().lower()
    return media_type == JSON or (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    )


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"the body may have at most {limit_bytes} bytes")


class Door:
    """Around everything: Request-Id, no caching, what browsers need, metrics, limits by address."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        limits: RateLimits,
        origins: Origins,
        logger: Logger,
        *,
        unlimited: frozenset[str],
        tracer: Tracer | None,
    ) -> None:
        self._tracer = tracer
        self._app = app
        self._metrics = metrics
        self._limits = limits
        self._origins = origins
        self._logger = logger
        self._unlimited = unlimited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
        elif self._tracer is None or scope["path"] in self._unlimited:
            await self._serve(scope, receive, send)
        else:
            with self._tracer.span("request") as span:
                status = await self._serve(scope, receive, send)
                route = str(scope.get("path_template") or "unmatched")
                span.update_name(f"{_method(scope)} {route}")
                span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", status)
                span.set_attribute("messenger.request_id", scope["request_id"])  # type: ignore[typeddict-item]

    async def _serve(self, scope: Any, receive: Receive, send: Send) -> int:
        """The status of the response."""
        began = time.perf_counter()
        given = header(scope, b"request-id") or header(scope, b"x-request-id")
        if given is None or not _REQUEST_ID.fullmatch(given):
            given = clock.new_id().encode()
        scope["request_id"] = given.decode()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"request-id", given), (b"cache-control", b"no-store")]
                limit = rate_limits.headers(scope)
                own = list(message["headers"])
                message["headers"] = own + extra + limit + self._origins.headers(scope, own)
            await send(message)

        try:
            if scope["path"] not in self._unlimited:
                self._limits.arrived(scope)
        except RateLimited as refusal:
            self._metrics.problem(refusal.code)
            await problem_reply(refusal)(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)
        template = str(scope.get("path_template") or "unmatched")
        seconds = time.perf_counter() - began
        self._metrics.request(scope["method"], template, status, seconds)
        if seconds >= SLOW_SECONDS or self._logger.is_debug:
            self._log(scope, template, status, seconds)
        return status

    def _log(self, scope: Any, template: str, status: int, seconds: float) -> None:
        """The route's template: paths and parameters name people and what they look for."""
        is_slow = seconds >= SLOW_SECONDS
        (self._logger.info if is_slow else self._logger.debug)(
            "request_slow" if is_slow else "request",
            request_id=scope["request_id"],
            method=_method(scope),
            route=template,
            status=status,
            milliseconds=round(1000 * seconds, 1),
        )


def _method(scope: Any) -> str:
    """Anybody may make methods up."""
    method: str = scope["method"]
    return method if method in METHODS else "other"
