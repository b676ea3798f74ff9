"""What browsers are told: whose pages may use the API, and what may be done with what it answers.

A page of another origin may use the API and the stream if MESSENGER_ALLOWED_ORIGINS names its
origin, and no other; cookies play no part, so it needs a token as everybody does. Whoever sends no
`Origin`, as clients that are no browsers, is not asked. A WebSocket's origin the browser leaves to
us to look at: a page of another origin is refused before it is accepted.
"""

from typing import Any
from urllib.parse import urlsplit

from api.problems import Headers

PREFLIGHT_SECONDS = 600
HSTS_SECONDS = 31_536_000

# The API shows nothing: what comes with a policy of its own is a page.
SECURITY: Headers = [
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
# A browser believes it only where it came by TLS.
HSTS = (b"strict-transport-security", b"max-age=%d" % HSTS_SECONDS)

SHOWN = (
    b"Idempotency-Replayed, Log-Position, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, "
    b"Request-Id, Retry-After"
)
PREFLIGHT: Headers = [
    (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
    (
        b"access-control-allow-headers",
        b"Authorization, Content-Type, Idempotency-Key, Min-Log-Position, Request-Id",
    ),
    (b"access-control-max-age", b"%d" % PREFLIGHT_SECONDS),
]


class Origins:
    """`allowed` as the setting has it."""

    def __init__(self, allowed: str | None) -> None:
        self._allowed = frozenset(allowed.encode().split(b",")) if allowed else frozenset[bytes]()

    def headers(self, scope: Any, given: Headers) -> Headers:
        """Those that are not given already."""
        names = {name for name, _ in given}
        headers = [one for one in SECURITY if one[0] not in names]
        if scope["scheme"] == "https":
            headers.append(HSTS)
        if self._allowed:
            # Also without an origin: a cache must not show one what another was told.
            headers.append((b"vary", b"Origin"))
            headers += self._cross_origin(scope)
        return headers

    def may_open(self, scope: Any) -> bool:
        """Whether a WebSocket's origin is one of ours, or none."""
        origin, host = _header(scope, b"origin"), _header(scope, b"host")
        if origin is None or origin.lower() in self._allowed:
            return True
        return host is not None and _address(origin) == host.lower()

    def _cross_origin(self, scope: Any) -> Headers:
        origin = _header(scope, b"origin")
        if origin is None or origin not in self._allowed:
            return []
        allowed = [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", SHOWN),
        ]
        return allowed + PREFLIGHT if scope["method"] == "OPTIONS" else allowed


def _address(origin: bytes) -> bytes:
    """Host and port: between us and the browser a proxy may have ended TLS."""
    try:
        return urlsplit(origin.decode("ascii").lower()).netloc.encode()
    except ValueError:
        return b""


def _header(scope: Any, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)
