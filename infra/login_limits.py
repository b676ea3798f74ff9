"""Throttles logins: so many wrong passwords per account and per address in a window.

Counts stand in the database, so that all processes share them, under keyed hashes of the
names and addresses. Within a process the logins of one account take turns and few logins run
at once, so that attempts made at the same moment can not slip past the count.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from infra.database import Pool
from infra.errors import MessengerError, Unavailable
from infra.keyring import Secret
from infra.settings import Settings

LOGINS_AT_ONCE = 8
MAX_WAITING_LOGINS = 512
IPV6_PREFIX_BITS = 64  # what one subscriber gets
MAX_CACHED_NETWORKS = 10_000

BLOCKED_FOR = """
    SELECT ceil(extract(epoch FROM max(f.window_ends_at) - now()))::int
    FROM login_failures AS f
    JOIN unnest(%s::bytea[], %s::int[]) AS allowed (key, failures) ON allowed.key = f.key
    WHERE f.failures >= allowed.failures AND f.window_ends_at > now()
"""

COUNT = """
    INSERT INTO login_failures AS f (key, failures, window_ends_at)
    SELECT key, 1, now() + make_interval(secs => %s)
    FROM unnest(%s::bytea[]) AS counted (key)
    ORDER BY key
    ON CONFLICT (key) DO UPDATE
    SET failures = CASE WHEN f.window_ends_at > now() THEN f.failures + 1 ELSE 1 END,
        window_ends_at = CASE
            WHEN f.window_ends_at > now() THEN f.window_ends_at
            ELSE excluded.window_ends_at
        END
"""

CLEAR = """
    DELETE FROM login_failures
    WHERE key = %s
"""

# Counts that are over go by the way, so the table stays as small as the attack.
FORGET = """
    DELETE FROM login_failures
    WHERE key IN (
        SELECT key
        FROM login_failures
        WHERE window_ends_at < now()
        LIMIT 1000
        FOR UPDATE SKIP LOCKED
    )
"""


class TooManyFailures(MessengerError):
    """Too many wrong passwords."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"too many wrong passwords: try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class Attempt(NamedTuple):
    """One login; `account` and `address` are hashes."""

    account: bytes
    address: bytes


class LoginLimits:
    """With rate limits off, nothing is counted."""

    def __init__(self, pool: Pool, secret: Secret, settings: Settings) -> None:
        self._pool = pool
        self._secret = secret
        self._settings = settings
        self._few = asyncio.Semaphore(LOGINS_AT_ONCE)
        self._turns: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._waiting = 0

    @asynccontextmanager
    async def attempt(self, username: str, address: str) -> AsyncIterator[Attempt]:
        """Raises TooManyFailures, or Unavailable when too many wait."""
        attempt = Attempt(
            self._hash("login account", username), self._hash("login address", network(address))
        )
        if self._waiting >= MAX_WAITING_LOGINS:
            raise Unavailable("too many logins wait")
        turn = self._turns.setdefault(attempt.account, asyncio.Lock())
        self._waiting += 1
        try:
            async with turn, self._few:
                await self._check(attempt)
                yield attempt
        finally:
            self._waiting -= 1

    async def failed(self, attempt: Attempt) -> None:
        if self._settings.rate_limits:
            seconds = self._settings.login_window_seconds
            async with self._pool.connection() as connection:
                await connection.execute(COUNT, (seconds, list(attempt)))

    async def succeeded(self, attempt: Attempt) -> None:
        """The account's count begins anew; the address's stays."""
        if self._settings.rate_limits:
            async with self._pool.connection() as connection:
                await connection.execute(CLEAR, (attempt.account,))
                await connection.execute(FORGET)

    async def _check(self, attempt: Attempt) -> None:
        if not self._settings.rate_limits:
            return
        allowed = [
            self._settings.login_failures_per_account,
            self._settings.login_failures_per_address,
        ]
        async with self._pool.connection() as connection:
            cursor = await connection.execute(BLOCKED_FOR, (list(attempt), allowed))
            row: Any = await cursor.fetchone()
        if row[0] is not None:
            raise TooManyFailures(max(1, row[0]))

    def _hash(self, scope: str, value: str) -> bytes:
        return bytes.fromhex(self._secret.blind(scope, value.encode()))


@lru_cache(MAX_CACHED_NETWORKS)
def network(address: str) -> str:
    """Whom an address stands for: itself, or its /64."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped:  # all of IPv4 is one /64 there
        return str(parsed.ipv4_mapped)
    return str(ip_network((parsed, IPV6_PREFIX_BITS), strict=False))
