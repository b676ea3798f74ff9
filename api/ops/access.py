"""Who is an operator: whoever knows MESSENGER_OPS_TOKEN, or has a session that it opened.

Scripts send the token as a bearer's; a browser posts it once and keeps a signed cookie, which no
script can read and no other site's page can send. Every process takes it, until it is over or the
token is another one. Wrong tokens are counted by address, and beyond a limit not even looked at;
sessions that are open go on.
"""

import hashlib
import hmac
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any

from api import rate_limits
from api.http import Inbound
from api.operations import BEARER
from api.problems import Headers, RateLimited, Unauthenticated
from infra.rate_limits import NANOSECONDS, Buckets, Limit
from infra.tokens import Tokens

COOKIE = "messenger_ops"
COOKIE_PATH = "/ops"
SESSION_SECONDS = 12 * 3600
MAX_COOKIE_BYTES = 4_096
# Wrong tokens of one address: so many at once, then one each ten seconds.
WRONG_TOKENS = Limit("operator", 0.1, 10)
PURPOSE = "operator's session"


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
        expires_at, _, signature = _cookie(inbound).partition(".")
        if not (expires_at.isascii() and expires_at.isdigit() and signature.isascii()):
            return False
        is_ours = hmac.compare_digest(signature, self._sign(expires_at))
        return is_ours and self._now() < int(expires_at)

    def session(self, scope: Any) -> Headers:
        """Of an answer that opens one."""
        expires_at = str(int(self._now()) + SESSION_SECONDS)
        return [_set_cookie(scope, f"{expires_at}.{self._sign(expires_at)}", SESSION_SECONDS)]

    def no_session(self, scope: Any) -> Headers:
        return [_set_cookie(scope, "", 0)]

    def _sign(self, expires_at: str) -> str:
        return self._tokens.sign(PURPOSE, f"{expires_at} {self._token}")


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
