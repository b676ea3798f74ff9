"""The keys: one secret for the instance, and for each user a profile and a content key.

Users' keys are stored wrapped by the instance's secret in `user_keys`, apart from the log:
destroying a row there erases what it sealed, in the log, its backups and NATS at once. The
secret is MESSENGER_SECRET, or one kept in the database where that is not set. What else
needs a secret (tokens, keyed hashes) gets a key derived from it, one a purpose.

A destroyed key is named in `erased_keys`, for ever, so that it is never made or read again.
A process may use the keys that it has at hand for LEASE_SECONDS after it looked there: when so
much time has passed since a key was destroyed, nobody uses it any more.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from domain.event import KeyPurpose
from domain.ids import UserId
from infra import clock
from infra.database import DOWN, Connection, Pool
from infra.errors import Stopped, Unavailable

# Some 2 kB each.
MAX_CACHED_KEYS = 40_000
# Who loads keys looks first for erased ones, if the last look is older than this.
LOOK_SECONDS = 0.5
# Older than this, and no key is used. The difference is for the way from loading to using.
LEASE_SECONDS = 1.5
# An idle process too lets go of what it has no right to keep.
WATCH_SECONDS = 5.0
MAX_FETCHES = 5
MAX_ERASED_AT_ONCE = 1_000
SECRET_BYTES = 32
NONCE_BYTES = 12
PURPOSES: tuple[KeyPurpose, ...] = ("profile", "content")

FETCH = """
    SELECT k.user_id::text, k.purpose, k.key
    FROM unnest(%s::uuid[], %s::text[]) AS wanted (user_id, purpose)
    JOIN user_keys AS k ON k.user_id = wanted.user_id AND k.purpose = wanted.purpose
    WHERE NOT EXISTS (
        SELECT
        FROM erased_keys AS e
        WHERE e.user_id = k.user_id AND e.purpose = k.purpose
    )
"""

# Between two erasures, so that what the next statement sees is so when it is committed.
HOLD_ERASURES = """
    LOCK TABLE erased_keys IN ROW EXCLUSIVE MODE
"""

CREATE = """
    INSERT INTO user_keys (user_id, purpose, key, created_at)
    SELECT user_id, purpose, key, %s
    FROM unnest(%s::uuid[], %s::text[], %s::bytea[]) AS new (user_id, purpose, key)
    WHERE NOT EXISTS (
        SELECT
        FROM erased_keys AS e
        WHERE e.user_id = new.user_id AND e.purpose = new.purpose
    )
    ON CONFLICT DO NOTHING
"""

# One erasure at a time: numbers are seen in their order, so none is passed over.
LOCK_ERASURES = """
    LOCK TABLE erased_keys IN SHARE ROW EXCLUSIVE MODE
"""

DESTROY = """
    DELETE FROM user_keys
    WHERE user_id = %s AND purpose = ANY (%s)
"""

NOTE_ERASED = """
    INSERT INTO erased_keys (user_id, purpose, id, erased_at)
    SELECT %s, purpose, last.id + ordinal, clock_timestamp()
    FROM (
        SELECT coalesce(max(id), 0) AS id
        FROM erased_keys
    ) AS last
    CROSS JOIN unnest(%s::text[]) WITH ORDINALITY AS erased (purpose, ordinal)
    ON CONFLICT (user_id, purpose) DO UPDATE
    SET id = excluded.id
"""

LAST_ERASED = """
    SELECT coalesce(max(id), 0)
    FROM erased_keys
"""

ERASED_SINCE = """
    SELECT id, user_id::text, purpose
    FROM erased_keys
    WHERE id > %s
    ORDER BY id
    LIMIT %s
"""

KEEP_SECRET = """
    INSERT INTO instance_secrets (name, value)
    VALUES ('messenger', %s)
    ON CONFLICT DO NOTHING
"""

FORMER_PREFIX = "former "
MAX_FORMER = 1_000

FETCH_FORMER = """
    SELECT name, value
    FROM instance_secrets
    WHERE starts_with(name, %s)
    ORDER BY name
    LIMIT %s
"""

KEEP_FORMER = """
    INSERT INTO instance_secrets (name, value)
    VALUES (%s, %s)
    ON CONFLICT DO NOTHING
"""

FETCH_SECRET = """
    SELECT value
    FROM instance_secrets
    WHERE name = 'messenger'
"""


class KeyId(NamedTuple):
    user_id: UserId
    purpose: KeyPurpose


class Blinding:
    """The key of keyed hashes. Where a log moved in, those of its former houses are kept too."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.name = hashlib.blake2b(key, digest_size=8).hexdigest()

    def blind(self, scope: str, value: bytes) -> str:
        """A keyed hash in hex: equal for equal values, says nothing about them."""
        return hashlib.blake2b(
            scope.encode() + b"\0" + value, key=self.key, digest_size=24
        ).hexdigest()


class Secret:
    """The instance's secret, and the keys derived from it."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.blinding = Blinding(self.derive("blind"))
        self._wrapping = AESGCM(self.derive("wrap former blindings"))

    @classmethod
    async def load(cls, configured: str | None, connection: Connection) -> "Secret":
        if configured is not None:
            return cls(configured.encode())
        await connection.execute(KEEP_SECRET, (os.urandom(SECRET_BYTES),))
        row: Any = await (await connection.execute(FETCH_SECRET)).fetchone()
        return cls(bytes(row[0]))

    def derive(self, purpose: str) -> bytes:
        hkdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=f"messenger {purpose}".encode())
        return hkdf.derive(self._secret)

    def blind(self, scope: str, value: bytes) -> str:
        return self.blinding.blind(scope, value)

    async def former(self, connection: Connection) -> dict[str, Blinding]:
        """By name. They change only with an import, into a log that was empty."""
        cursor = await connection.execute(FETCH_FORMER, (FORMER_PREFIX, MAX_FORMER))
        found = [self._unwrapped(name, bytes(value)) for name, value in await cursor.fetchall()]
        return {blinding.name: blinding for blinding in found}

    async def keep_former(self, connection: Connection, blinding: Blinding) -> None:
        name = FORMER_PREFIX + blinding.name
        nonce = os.urandom(NONCE_BYTES)
        wrapped = nonce + self._wrapping.encrypt(nonce, blinding.key, name.encode())
        await connection.execute(KEEP_FORMER, (name, wrapped))

    def _unwrapped(self, name: str, value: bytes) -> Blinding:
        nonce, sealed = value[:NONCE_BYTES], value[NONCE_BYTES:]
        try:
            return Blinding(self._wrapping.decrypt(nonce, sealed, name.encode()))
        except InvalidTag:
            raise Stopped(
                "instance_secrets was written with another secret: set MESSENGER_SECRET to it"
            ) from None


class Expired(Unavailable):
    """A key was at hand for too long to be used: load it again."""


class Keyring:
    """A bounded cache of users' ciphers. `load` what you need, then `cipher` is at hand."""

    def __init__(self, secret: Secret, pool: Pool) -> None:
        self._wrapping = AESGCM(secret.derive("wrap user keys"))
        self._pool = pool
        self._ciphers: dict[KeyId, AESGCM] = {}
        self._listeners: list[Callable[[KeyId], None]] = []
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")
        self._last_erased: int | None = None

    def cipher(self, key_id: KeyId) -> AESGCM | None:
        """None if the key is destroyed, or was not loaded. Raises Expired if that can't be told any
        more."""
        cipher = self._ciphers.get(key_id)
        if cipher is not None and monotonic() - self._looked_at > LEASE_SECONDS:
            raise Expired("too long since it was seen which keys are erased")
        return cipher

    def listen(self, listener: Callable[[KeyId], None]) -> None:
        """It is told of each key that is erased from now on."""
        self._listeners.append(listener)

    async def load(self, key_ids: Iterable[KeyId]) -> None:
        """Fetches those that are not cached; unknown and destroyed ones stay unknown."""
        await self.look()
        wanted = [key_id for key_id in set(key_ids) if not self._touch(key_id)]
        if wanted:
            self._make_room(len(wanted))
            await self._fetch(wanted)
            await self.look()

    async def look(self) -> None:
        """Drops the keys that were erased since the last look, unless that was just now."""
        # Who need not look may still not overtake who waits: commands go on in their order.
        async with self._looking:
            began = monotonic()
            if began - self._looked_at >= LOOK_SECONDS:
                await self._drop_erased()
                self._looked_at = began

    async def watch(self) -> None:
        """For as long as the process lives."""
        while True:
            with suppress(*DOWN):  # who needs a key hears of it
                await self.look()
            await asyncio.sleep(WATCH_SECONDS)

    async def create(self, user_ids: Iterable[UserId]) -> None:
        """Makes both keys of each, unless another process just did; those at hand are there,
        and those once erased are never made again."""
        wanted = [
            key_id
            for user_id in user_ids
            for key_id in (KeyId(user_id, purpose) for purpose in PURPOSES)
            if key_id not in self._ciphers
        ]
        if not wanted:
            return
        users = [key_id.user_id for key_id in wanted]
        purposes = [key_id.purpose for key_id in wanted]
        keys = [self._wrap(key_id, os.urandom(32)) for key_id in wanted]
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(HOLD_ERASURES)
            await connection.execute(CREATE, (clock.now(), users, purposes, keys))
        await self.load(wanted)

    async def destroy(self, user_id: UserId, purposes: Collection[KeyPurpose]) -> None:
        """For good. Other processes use them for LEASE_SECONDS more at the longest."""
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(LOCK_ERASURES)
            await connection.execute(DESTROY, (user_id, list(purposes)))
            await connection.execute(NOTE_ERASED, (user_id, list(purposes)))

    async def _drop_erased(self) -> None:
        async with self._pool.connection() as connection:
            if self._last_erased is None:
                row: Any = await (await connection.execute(LAST_ERASED)).fetchone()
                self._last_erased = row[0]
                return
            erased = None
            while erased is None or len(erased) == MAX_ERASED_AT_ONCE:
                arguments = (self._last_erased, MAX_ERASED_AT_ONCE)
                erased = await (await connection.execute(ERASED_SINCE, arguments)).fetchall()
                for number, user_id, purpose in erased:
                    self._drop(KeyId(user_id, purpose))
                    self._last_erased = number

    def _drop(self, key_id: KeyId) -> None:
        self._ciphers.pop(key_id, None)
        for listener in self._listeners:
            listener(key_id)

    async def _fetch(self, wanted: list[KeyId]) -> None:
        """What was fetched counts only if no erasure was seen meanwhile: that one would be
        passed over."""
        users, purposes = (list(column) for column in zip(*wanted, strict=True))
        for _ in range(MAX_FETCHES):
            known = self._last_erased
            async with self._pool.connection() as connection:
                rows = await (await connection.execute(FETCH, (users, purposes))).fetchall()
            if self._last_erased == known:
                self._keep(rows)
                return
        raise Unavailable("keys are erased faster than others can be fetched")

    def _keep(self, rows: list[tuple[UserId, KeyPurpose, bytes]]) -> None:
        for user_id, purpose, key in rows:
            key_id = KeyId(user_id, purpose)
            self._ciphers[key_id] = AESGCM(self._unwrap(key_id, bytes(key)))

    def _touch(self, key_id: KeyId) -> bool:
        """Whether it is cached; if so, others make room first: a load may not drop what it was
        asked for, since an absent key reads as a destroyed one."""
        cipher = self._ciphers.pop(key_id, None)
        if cipher is None:
            return False
        self._ciphers[key_id] = cipher
        return True

    def _make_room(self, count: int) -> None:
        while self._ciphers and len(self._ciphers) + count > MAX_CACHED_KEYS:
            del self._ciphers[next(iter(self._ciphers))]

    def _wrap(self, key_id: KeyId, key: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._wrapping.encrypt(nonce, key, _binding(key_id))

    def _unwrap(self, key_id: KeyId, wrapped: bytes) -> bytes:
        nonce, sealed = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
        try:
            return self._wrapping.decrypt(nonce, sealed, _binding(key_id))
        except InvalidTag:
            raise Stopped(
                "the keys in user_keys were made with another secret: set MESSENGER_SECRET to it"
            ) from None


def _binding(key_id: KeyId) -> bytes:
    return f"{key_id.user_id} {key_id.purpose}".encode()
