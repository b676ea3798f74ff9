"""What is served below /ops: the page, its files, an operator's session, and the state as JSON.

Where no token is set all of it is 404. The files are the package's own and say nothing of this
installation, so they are for anybody; the state is for operators. However many look, PostgreSQL
and NATS are asked once in STATE_SECONDS.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta
from psycopg import InterfaceError

from api.bodies import decode
from api.http import NoContent, Reply, json_reply
from api.look import Look
from api.operations import Call, Operation
from api.ops.access import Operators
from api.parts import Parts
from api.problems import Headers
from infra.database import DOWN, Pool
from infra.errors import MessengerError, Unavailable
from infra.overview import Observer, State
from projections import NAMES

STATE_SECONDS = 0.9  # less than the page's second: each of its looks is a new one
PATIENCE_SECONDS = 1.0  # then it is told that PostgreSQL is away
MAX_BODY_BYTES = 2_048
STATIC = Path(__file__).parent / "static"
# No script, style or connection but our own, and none in the page itself.
POLICY_TEXT = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
POLICY: Headers = [(b"content-security-policy", POLICY_TEXT)]

Method = Literal["GET", "POST", "PUT", "DELETE"]
Handle = Callable[[Call], Awaitable[Reply]]


class File(NamedTuple):
    path: str
    name: str
    content_type: bytes


FILES = (
    File("/ops", "ops.html", b"text/html; charset=utf-8"),
    File("/ops/ops.css", "ops.css", b"text/css; charset=utf-8"),
    File("/ops/ops.js", "ops.js", b"text/javascript; charset=utf-8"),
    File("/ops/icon.svg", "icon.svg", b"image/svg+xml"),
)


class SignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: Annotated[str, Meta(max_length=1_000)]


class SignedIn(msgspec.Struct, frozen=True):
    signed_in: bool


_sign_in_decoder = msgspec.json.Decoder(SignIn)


class Watched:
    """The state for all who watch: one look at a time, and none while the last one is fresh."""

    def __init__(
        self,
        observer: Observer,
        pool: Pool,
        operators: Operators,
        *,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._observer = observer
        self._operators = operators
        self._pool = pool
        self._now = now
        self._looking = Look[None]()
        self._looked_at = float("-inf")
        self._state = b""
        self.looks = 0

    async def state(self) -> bytes:
        """As JSON."""
        if self._now() - self._looked_at >= STATE_SECONDS:
            try:
                await self._looking.found(self._look, patience_seconds=PATIENCE_SECONDS)
            except Unavailable as error:
                return msgspec.json.encode(self._observer.away(error))
        return self._state

    async def _look(self) -> None:
        began = self._now()
        self._state = msgspec.json.encode(await self._seen())
        self._looked_at = began
        self.looks += 1

    async def _seen(self) -> State:
        try:
            async with self._pool.connection() as connection:
                state = await self._observer.look(connection)
                await self._operators.learn(connection)
                return state
        except (MessengerError, InterfaceError, *DOWN) as error:
            return self._observer.away(error)


class Ops:
    """`token` as the setting has it."""

    def __init__(self, token: str, parts: Parts) -> None:
        self._pool = parts.pool
        self._operators = Operators(token, parts.tokens, is_limited=parts.settings.rate_limits)
        self.watched = Watched(Observer(parts.bus, NAMES), parts.pool, self._operators)

    async def session(self, call: Call) -> Reply:
        """Asked first, so that nobody is refused who only wants to know."""
        if self._operators.has_session(call.inbound):
            await self.watched.state()
        return json_reply(SignedIn(self._operators.has_session(call.inbound)))

    async def sign_in(self, call: Call) -> Reply:
        given = decode(_sign_in_decoder, await call.inbound.json_body(MAX_BODY_BYTES))
        self._operators.check(given.token, call.inbound.scope)
        return NoContent(self._operators.session(call.inbound.scope))

    async def sign_out(self, call: Call) -> Reply:
        await self._operators.end(call.inbound, self._pool)
        return NoContent(self._operators.no_session(call.inbound.scope))

    async def state(self, call: Call) -> Reply:
        self._operators.admit(call.inbound)
        state = await self.watched.state()
        self._operators.admit(call.inbound)  # again: the look may have told of its end
        return Reply(200, state)


def operations(parts: Parts) -> tuple[Operation, ...]:
    """Not in the API's description: they are this page's own."""
    token = parts.settings.ops_token
    if token is None:
        return ()
    ops = Ops(token, parts)
    return (
        *(_file(file) for file in FILES),
        _operation("GET", "/ops/session", "ops-session", ops.session),
        _operation("POST", "/ops/session", "ops-sign-in", ops.sign_in),
        _operation("DELETE", "/ops/session", "ops-sign-out", ops.sign_out),
        _operation("GET", "/ops/state", "ops-state", ops.state),
    )


def _file(file: File) -> Operation:
    content = (STATIC / file.name).read_bytes()

    async def show(call: Call) -> Reply:
        return Reply(200, content, POLICY, file.content_type)

    return _operation("GET", file.path, file.name, show)


def _operation(method: Method, path: str, name: str, handle: Handle) -> Operation:
    return Operation(method, path, name, name, handle, token="none")
