"""Who is an operator: whoever knows MESSENGER_OPS_TOKEN, or has a session that it opened.

Scripts send the token as a bearer's; a browser posts it once and keeps a signed cookie, which no
script can read and no other site's page can send. Every process takes it, until it is over, signed
out, or the token is another one. Wrong tokens are counted by address, and beyond a limit not even
looked at; sessions that are open go on.

Nothing is written when a session opens, so that it does while PostgreSQL is away. Its end stands among
the sessions of people, as one of nobody: processes read it with each look at PostgreSQL, and
`messenger maintain` forgets it with those. While PostgreSQL is away an end elsewhere is not heard of,
and the page has nothing to tell but that.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any, NamedTuple

from api import rate_limits
from api.http import Inbound
from api.operations import BEARER
from api.problems import Headers, RateLimited, Unauthenticated
from infra import clock
from infra.database import Connection, Pool
from infra.errors import Unavailable
from infra.rate_limits import NANOSECONDS, Buckets, Limit
from infra.tokens import Tokens

COOKIE = "messenger_ops"
COOKIE_PATH = "/ops"
SESSION_SECONDS = 12 * 3600
MAX_COOKIE_BYTES = 4_096
# Wrong tokens of one address: so many at once, then one each ten seconds.
WRONG_TOKENS = Limit("operator", 0.1, 10)
PURPOSE = "operator's session"
END_SECONDS = 3.0
MAX_ENDED = 10_000  # within SESSION_SECONDS, the last ones
NOBODY = "00000000-0000-0000-0000-000000000000"
DEVICE = "operator"

END = """
    INSERT INTO sessions (
        id, user_id, device_name, refresh_hash, created_at, last_used_at, expires_at, ended_at
    )
    VALUES (
        %(id)s, %(nobody)s, %(device)s, '', now(), now(), to_timestamp(%(expires_at)s),
        clock_timestamp()
    )
    ON CONFLICT (id) DO NOTHING
"""

# As the index on ended sessions with a device's name has them.
ENDED = """
    SELECT
        id::text,
        extract(epoch FROM expires_at)::bigint
    FROM sessions
    WHERE user_id = %s AND ended_at IS NOT NULL AND device_name IS NOT NULL AND expires_at > now()
    ORDER BY ended_at DESC
    LIMIT %s
"""


class Session(NamedTuple):
    """`expires_at` in seconds since 1970."""

    id: str
    expires_at: int


class Operators:
    """`is_limited`: whether wrong tokens are counted."""

    def __init__(
        self,
        token: str,
        tokens: Tokens,
        *,
        is_limited: bool,
        now: Callable[[], float] = time.time,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._token = token
        self._hash = _hash(token)
        self._tokens = tokens
        self._is_limited = is_limited
        self._now = now
        self._now_ns = now_ns
        self._wrong = Buckets(WRONG_TOKENS)
        self._ended: dict[str, int] = {}  # until when each would have lived

    def admit(self, inbound: Inbound) -> None:
        """Raises Unauthenticated or RateLimited."""
        given = inbound.header(b"authorization")
        if given is None:
            if not self.has_session(inbound):
                raise Unauthenticated("sign in with the operators' token")
            return
        if given[: len(BEARER)].lower() != BEARER:
            raise Unauthenticated("expected `Authorization: Bearer OPERATORS_TOKEN`")
        self.check(given[len(BEARER) :].strip().decode("latin-1"), inbound.scope)

    def check(self, token: str, scope: Any) -> None:
        """Raises Unauthenticated, or RateLimited without a look at it."""
        address, now_ns = rate_limits.address(scope), self._now_ns()
        wait_ns = self._wrong.wait_ns(address, 1, now_ns) if self._is_limited else 0
        if wait_ns:
            seconds = -(-wait_ns // NANOSECONDS)
            raise RateLimited(
                f"too many wrong tokens: try again in {seconds} s", retry_after_seconds=seconds
            )
        if not hmac.compare_digest(_hash(token), self._hash):
            self._wrong.take(address, 1, now_ns)
            raise Unauthenticated("this is not the operators' token")

    def has_session(self, inbound: Inbound) -> bool:
        session = self._session(inbound)
        return session is not None and session.id not in self._ended

    def session(self, scope: Any) -> Headers:
        """Of an answer that opens one."""
        said = f"{clock.new_id()}.{int(self._now()) + SESSION_SECONDS}"
        return [_set_cookie(scope, f"{said}.{self._sign(said)}", SESSION_SECONDS)]

    async def end(self, inbound: Inbound, pool: Pool) -> None:
        """Raises Unavailable, or what a database that is away raises: then it has not ended."""
        session = self._session(inbound)
        if session is None:
            return
        row = {**session._asdict(), "nobody": NOBODY, "device": DEVICE}
        try:
            async with asyncio.timeout(END_SECONDS), pool.connection() as connection:
                await connection.execute(END, row)
        except TimeoutError:
            raise Unavailable("no answer in time") from None
        self._ended[session.id] = session.expires_at

    async def learn(self, connection: Connection) -> None:
        """Which sessions have ended, here or elsewhere."""
        found = await (await connection.execute(ENDED, (NOBODY, MAX_ENDED))).fetchall()
        now = self._now()
        self._ended = {id_: at for id_, at in (self._ended | dict(found)).items() if now < at}

    def no_session(self, scope: Any) -> Headers:
        return [_set_cookie(scope, "", 0)]

    def _session(self, inbound: Inbound) -> Session | None:
        """Of its cookie, if that is ours and not over."""
        said, _, signature = _cookie(inbound).rpartition(".")
        if not (said.isascii() and signature.isascii()):
            return None
        if not hmac.compare_digest(signature, self._sign(said)):
            return None
        session_id, _, expires_at = said.partition(".")
        session = Session(session_id, int(expires_at))
        return session if self._now() < session.expires_at else None

    def _sign(self, said: str) -> str:
        return self._tokens.sign(PURPOSE, f"{said} {self._token}")


def _hash(token: str) -> bytes:
    """Of one length, whatever was given."""
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _cookie(inbound: Inbound) -> str:
    given = inbound.header(b"cookie") or b""
    if len(given) > MAX_COOKIE_BYTES:
        return ""
    try:
        morsel = SimpleCookie(given.decode("latin-1")).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel is not None else ""


def _set_cookie(scope: Any, value: str, seconds: int) -> tuple[bytes, bytes]:
    text = f"{COOKIE}={value}; Path={COOKIE_PATH}; Max-Age={seconds}; HttpOnly; SameSite=Strict"
    if scope["scheme"] == "https":
        text += "; Secure"
    return (b"set-cookie", text.encode())
