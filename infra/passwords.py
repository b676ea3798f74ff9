"""Slow hashes, off the event loop, in a few threads with a bounded queue (they free the GIL)."""

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import bcrypt

from infra.errors import Unavailable

T = TypeVar("T")

THREADS = 2
MAX_WAITING = 256
# scrypt: 16 MB and some 50 ms each.
STRETCH_COST = 2**14
STRETCH_BLOCKS = 8
STRETCH_BYTES = 24


class Passwords:
    """Hashes and checks passwords of at most 72 bytes. Raises Unavailable when swamped."""

    def __init__(self, *, rounds: int) -> None:
        self._rounds = rounds
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="bcrypt")
        self._waiting = 0

    @property
    def waiting(self) -> int:
        return self._waiting

    async def hash(self, password: str) -> str:
        salt = bcrypt.gensalt(self._rounds)
        return (await self._run(partial(bcrypt.hashpw, password.encode(), salt))).decode()

    async def matches(self, password: str, password_hash: str) -> bool:
        raw = password.encode()
        if len(raw) > 72:
            return False
        return await self._run(partial(bcrypt.checkpw, raw, password_hash.encode()))

    async def stretch(self, body_hash: str) -> str:
        """A hash of a body with a password in it, in hex: as slow to guess as bcrypt's, but
        equal for equal bodies. The body's hash is keyed already, which is the salt."""
        work = partial(
            hashlib.scrypt,
            body_hash.encode(),
            salt=b"messenger body",
            n=STRETCH_COST,
            r=STRETCH_BLOCKS,
            p=1,
            dklen=STRETCH_BYTES,
        )
        return (await self._run(work)).hex()

    async def _run(self, work: "partial[T]") -> T:
        if self._waiting >= MAX_WAITING:
            raise Unavailable("too many passwords wait to be checked")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1
