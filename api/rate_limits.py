"""Which requests cost what, and how a client is told (README, "Rate limits").

By address, as the request arrives, before it is routed; by user, once the token is checked,
before the body is read; requests with passwords once more by address, as each costs a slow
hash. A batch costs as many as it has commands. Counted in this process alone, in memory.

Headers: `RateLimit-Limit`, `-Remaining`, `-Reset`, as in drafts 00 to 06 of the IETF's
"RateLimit fields for HTTP", of the limit with the least remaining. Later drafts put them into
one structured field, whose form has changed with nearly each of them and few clients read.

Not Litestar's RateLimitMiddleware: it knows fixed windows (twice the limit where two meet) and
no costs, and keeps each request's time in a store, read and written as JSON under one lock:
73 us a request at 1,000 a window, 182 us at 4,000. Here a request costs some 3 us in all.
Other packages would be a dependency for what is one line of arithmetic.
"""

import time
from collections.abc import Callable
from typing import Any

from api.metrics import Metrics
from api.problems import Headers, RateLimited
from domain.ids import UserId
from infra.login_limits import network
from infra.rate_limits import NANOSECONDS, Buckets, Limit, Verdict
from infra.settings import Settings

UNKNOWN_ADDRESS = "unknown"

_TIGHTEST = "rate_limit"  # in the ASGI scope: the verdict that the headers tell


class RateLimits:
    """Each method raises RateLimited. With rate limits off nothing is counted or told."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._is_on = settings.rate_limits
        self._metrics = metrics
        self._now_ns = now_ns
        self._addresses, self._users, self._passwords = map(Buckets, limits(settings))
        metrics.begin_limits(limit.name for limit in limits(settings))

    def arrived(self, scope: Any) -> None:
        self._take(scope, self._addresses, address(scope), 1)

    def signed_in(self, scope: Any, user_id: UserId) -> None:
        self._take(scope, self._users, user_id, 1)

    def with_password(self, scope: Any) -> None:
        self._take(scope, self._passwords, address(scope), 1)

    def batch(self, scope: Any, user_id: UserId | None, commands: int) -> None:
        """The first command is paid for by the request itself."""
        # The user first: one over the limit must not use up what others at the address have.
        if user_id is not None:
            self._take(scope, self._users, user_id, commands - 1, paid=1)
        self._take(scope, self._addresses, address(scope), commands - 1, paid=1)

    def _take(self, scope: Any, buckets: Buckets, key: str, cost: int, *, paid: int = 0) -> None:
        if not self._is_on:
            return
        verdict = buckets.take(key, cost, self._now_ns())
        if verdict.wait_ns and paid:
            # What this request has paid, the next attempt pays again: it must be there too.
            wait_ns = verdict.wait_ns + paid * verdict.limit.interval_ns
            verdict = verdict._replace(wait_ns=wait_ns)
        tightest: Verdict | None = scope.get(_TIGHTEST)
        if verdict.wait_ns or tightest is None or verdict.remaining < tightest.remaining:
            scope[_TIGHTEST] = verdict
        if verdict.wait_ns:
            self._metrics.rate_limited(verdict.limit.name)
            raise _refusal(verdict)


def limits(settings: Settings) -> tuple[Limit, Limit, Limit]:
    """By address, by user, and by address with passwords."""
    return (
        Limit("address", settings.rate_limit_address_per_second, settings.rate_limit_address_burst),
        Limit("user", settings.rate_limit_user_per_second, settings.rate_limit_user_burst),
        Limit(
            "password", settings.rate_limit_password_per_second, settings.rate_limit_password_burst
        ),
    )


def address(scope: Any) -> str:
    """The client's, or the /64 that it is in."""
    client = scope.get("client")
    return network(client[0]) if client else UNKNOWN_ADDRESS


def headers(scope: Any) -> Headers:
    """Empty where nothing was counted."""
    verdict: Verdict | None = scope.get(_TIGHTEST)
    if verdict is None:
        return []
    # Beside Retry-After the draft wants the same moment here.
    return [
        (b"ratelimit-limit", b"%d" % verdict.limit.burst),
        (b"ratelimit-remaining", b"%d" % verdict.remaining),
        (b"ratelimit-reset", b"%d" % _seconds(verdict.wait_ns or verdict.reset_ns)),
    ]


def _refusal(verdict: Verdict) -> RateLimited:
    limit, seconds = verdict.limit, _seconds(verdict.wait_ns)
    return RateLimited(
        f"over the limit by {limit.name}: {limit.burst} at once, then {limit.per_second:g} a second; "
        f"try again in {seconds} s",
        retry_after_seconds=seconds,
    )


def _seconds(nanoseconds: int) -> int:
    """Rounded up."""
    return -(-nanoseconds // NANOSECONDS)
