"""The keys: one secret for the instance, and for each user a profile and a content key.

Users' keys are stored wrapped by the instance's secret in `user_keys`, apart from the log:
destroying a row there erases what it sealed, in the log, its backups and NATS at once. The
secret is MESSENGER_SECRET, or one kept in the database where that is not set. What else
needs a secret (tokens, keyed hashes) gets a key derived from it, one a purpose.
"""

import hashlib
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from domain.event import KeyPurpose
from domain.ids import UserId
from infra import clock
from infra.database import Connection, Pool
from infra.errors import Stopped

# Some 2 kB each.
MAX_CACHED_KEYS = 40_000
SECRET_BYTES = 32
NONCE_BYTES = 12
PURPOSES: tuple[KeyPurpose, ...] = ("profile", "content")

FETCH = """
    SELECT k.user_id::text, k.purpose, k.key
    FROM unnest(%s::uuid[], %s::text[]) AS wanted (user_id, purpose)
    JOIN user_keys AS k ON k.user_id = wanted.user_id AND k.purpose = wanted.purpose
"""

CREATE = """
    INSERT INTO user_keys (user_id, purpose, key, created_at)
    SELECT user_id, purpose, key, %s
    FROM unnest(%s::uuid[], %s::text[], %s::bytea[]) AS new (user_id, purpose, key)
    ON CONFLICT DO NOTHING
"""

KEEP_SECRET = """
    INSERT INTO instance_secrets (name, value)
    VALUES ('messenger', %s)
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


class Secret:
    """The instance's secret, and the keys derived from it."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._blinding = self.derive("blind")

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
        """A keyed hash in hex: equal for equal values, says nothing about them."""
        return hashlib.blake2b(
            scope.encode() + b"\0" + value, key=self._blinding, digest_size=24
        ).hexdigest()


class Keyring:
    """A bounded cache of users' ciphers. `load` what you need, then `cipher` is at hand."""

    def __init__(self, secret: Secret, pool: Pool) -> None:
        self._wrapping = AESGCM(secret.derive("wrap user keys"))
        self._pool = pool
        self._ciphers: dict[KeyId, AESGCM] = {}

    def cipher(self, key_id: KeyId) -> AESGCM | None:
        """None if the key is destroyed, or was not loaded."""
        return self._ciphers.get(key_id)

    async def load(self, key_ids: Iterable[KeyId]) -> None:
        """Fetches those that are not cached; unknown and destroyed ones stay unknown."""
        wanted = [key_id for key_id in set(key_ids) if not self._touch(key_id)]
        if not wanted:
            return
        self._make_room(len(wanted))
        users, purposes = (list(column) for column in zip(*wanted, strict=True))
        async with self._pool.connection() as connection:
            cursor = await connection.execute(FETCH, (users, purposes))
            for user_id, purpose, key in await cursor.fetchall():
                key_id = KeyId(user_id, purpose)
                self._ciphers[key_id] = AESGCM(self._unwrap(key_id, bytes(key)))

    async def create(self, user_ids: Iterable[UserId]) -> None:
        """Makes both keys of each, unless another process just did; those at hand are there."""
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
        async with self._pool.connection() as connection:
            await connection.execute(CREATE, (clock.now(), users, purposes, keys))
        await self.load(wanted)

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
