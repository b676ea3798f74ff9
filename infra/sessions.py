"""Sessions: opened by a login, carried on by rotating refresh tokens, ended for good.

Refresh tokens are stored as hashes; exactly one of two refreshes with the same token wins,
and the other, like any use of an old token, ends the session.

`EndedSessions` lets a process refuse an ended session's access tokens with no query: it knows
all that ended within the life of an access token, from a poll of the table, brought forward
by a hint on the bus. When its knowledge is older than STALE_SECONDS, each token is checked
in the table itself: what can not be checked is not let in.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, NamedTuple, Self

from domain.ids import UserId
from infra import clock, database
from infra.bus import SESSIONS, Bus
from infra.database import DOWN, Connection, Pool
from infra.ending import end
from infra.errors import Unavailable
from infra.tokens import RefreshToken, Tokens

POLL_SECONDS = 0.25
POLL_TIMEOUT_SECONDS = 2.0
STALE_SECONDS = 0.75
# A session ends at a time that its transaction takes before it commits.
OVERLAP_SECONDS = 60
MAX_ENDED = 200_000
MAX_SESSIONS_OF_USER = 100

OPEN = """
    INSERT INTO sessions (
        id, user_id, device_name, refresh_hash, created_at, last_used_at, expires_at
    )
    VALUES (
        %(id)s, %(user_id)s, %(device_name)s, %(refresh_hash)s, now(), now(),
        now() + make_interval(secs => %(seconds)s)
    )
"""

END_OLDEST = """
    UPDATE sessions
    SET ended_at = clock_timestamp()
    WHERE id IN (
        SELECT id
        FROM sessions
        WHERE user_id = %s AND ended_at IS NULL
        ORDER BY last_used_at DESC, id DESC
        OFFSET %s
    )
    RETURNING id::text
"""

ROTATE = """
    UPDATE sessions
    SET refresh_hash = %(new)s,
        last_used_at = now(),
        expires_at = now() + make_interval(secs => %(seconds)s)
    WHERE id = %(id)s AND refresh_hash = %(old)s AND ended_at IS NULL AND expires_at > now()
    RETURNING user_id::text
"""

END = """
    UPDATE sessions
    SET ended_at = clock_timestamp()
    WHERE id = %s AND ended_at IS NULL
    RETURNING id::text
"""

END_OF_USER = """
    UPDATE sessions
    SET ended_at = clock_timestamp()
    WHERE id = %s AND user_id = %s AND ended_at IS NULL
    RETURNING id::text
"""

END_OTHERS = """
    UPDATE sessions
    SET ended_at = clock_timestamp()
    WHERE user_id = %s AND id <> %s AND ended_at IS NULL
    RETURNING id::text
"""

# With the names of the devices, also of those that had ended.
END_ALL = """
    UPDATE sessions
    SET ended_at = coalesce(ended_at, clock_timestamp()),
        device_name = NULL
    WHERE user_id = %(user_id)s AND ended_at IS NULL
        OR user_id = %(user_id)s AND ended_at IS NOT NULL AND device_name IS NOT NULL
    RETURNING id::text
"""

LIST = """
    SELECT
        id::text,
        device_name,
        created_at,
        last_used_at
    FROM sessions
    WHERE user_id = %s AND ended_at IS NULL AND expires_at > now()
    ORDER BY last_used_at DESC, id DESC
"""

RECENTLY_ENDED = """
    SELECT id::text
    FROM sessions
    WHERE ended_at > clock_timestamp() - make_interval(secs => %s)
    LIMIT %s
"""

IS_OPEN = """
    SELECT EXISTS (
        SELECT
        FROM sessions
        WHERE id = %s AND ended_at IS NULL
    )
"""


class Listed(NamedTuple):
    session_id: str
    device_name: str | None
    created_at: datetime
    last_used_at: datetime


class EndedSessions:
    """`async with` keeps it current."""

    def __init__(self, url: str, pool: Pool, bus: Bus, *, access_token_seconds: int) -> None:
        self._url = url
        self._pool = pool
        self._bus = bus
        self._life_seconds = access_token_seconds + OVERLAP_SECONDS
        self._ended: dict[str, float] = {}
        self._known_at = float("-inf")
        self._is_complete = False
        self._wake = asyncio.Event()
        self._connection: Connection | None = None
        self._listeners: list[Callable[[list[str]], None]] = []

    async def __aenter__(self) -> Self:
        await self._bus.listen(SESSIONS, self._hear)
        self._task = asyncio.create_task(self._run(), name="ended sessions")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)
        await self._disconnect()

    def listen(self, listener: Callable[[list[str]], None]) -> None:
        """It is told of each session that has ended, once, as this process learns of it."""
        self._listeners.append(listener)

    def add(self, session_ids: list[str]) -> None:
        """What this process ended; the others get a hint."""
        self._learn(session_ids, time.monotonic())
        if session_ids:
            self._bus.hint(SESSIONS)

    async def has(self, session_id: str) -> bool:
        """Raises Unavailable where it can't be known."""
        if session_id in self._ended:
            return True
        if time.monotonic() - self._known_at <= STALE_SECONDS:
            return False
        return not await self._is_open(session_id)

    async def _is_open(self, session_id: str) -> bool:
        try:
            async with self._pool.connection() as connection:
                row: Any = await (await connection.execute(IS_OPEN, (session_id,))).fetchone()
        except DOWN as error:
            raise Unavailable("whether the session has ended can't be known now") from error
        return bool(row[0])

    async def _hear(self, _: object) -> None:
        self._wake.set()

    async def _run(self) -> None:
        """For as long as the process lives; while it fails, tokens are checked in the table."""
        while True:
            self._wake.clear()
            try:
                async with asyncio.timeout(POLL_TIMEOUT_SECONDS):
                    await self._poll()
            except (*DOWN, Unavailable, TimeoutError):
                await self._disconnect()
            await _first_of(self._wake.wait, POLL_SECONDS)

    async def _poll(self) -> None:
        began = time.monotonic()
        if self._connection is None:
            self._connection = await database.connect(self._url, name=database.process_name("api"))
        since_seconds = OVERLAP_SECONDS if self._is_complete else self._life_seconds
        cursor = await self._connection.execute(RECENTLY_ENDED, (since_seconds, MAX_ENDED))
        self._learn([session_id for (session_id,) in await cursor.fetchall()], began)
        self._forget(before=began - self._life_seconds)
        # More than can be kept: every token is then checked in the table.
        if len(self._ended) < MAX_ENDED:
            self._is_complete = True
            self._known_at = began

    def _learn(self, session_ids: list[str], learned_at: float) -> None:
        new = [session_id for session_id in session_ids if session_id not in self._ended]
        self._ended |= dict.fromkeys(new, learned_at)
        for listener in self._listeners if new else ():
            listener(new)

    def _forget(self, *, before: float) -> None:
        """They are kept in the order they were learned in."""
        while self._ended:
            session_id, learned_at = next(iter(self._ended.items()))
            if learned_at >= before and len(self._ended) <= MAX_ENDED:
                return
            del self._ended[session_id]

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._is_complete = False
        if connection is not None:
            await connection.close()


class Sessions:
    """What is done with sessions; every end is told to all processes."""

    def __init__(
        self, pool: Pool, tokens: Tokens, ended: EndedSessions, *, refresh_token_seconds: int
    ) -> None:
        self._pool = pool
        self._tokens = tokens
        self._ended = ended
        self._seconds = refresh_token_seconds

    async def open(self, user_id: UserId, device_name: str | None) -> RefreshToken:
        """Beyond MAX_SESSIONS_OF_USER, the least recently used ones end."""
        token = self._tokens.refresh(clock.new_id())
        row = {
            "id": token.session_id,
            "user_id": user_id,
            "device_name": device_name,
            "refresh_hash": token.hash,
            "seconds": self._seconds,
        }
        async with self._pool.connection() as connection:
            await connection.execute(OPEN, row)
        await self._end(END_OLDEST, (user_id, MAX_SESSIONS_OF_USER))
        return token

    async def rotate(self, text: str) -> tuple[UserId, RefreshToken] | None:
        """The user and the next token; None if this one does not hold (any more)."""
        old = self._tokens.read_refresh(text)
        if old is None:
            return None
        new = self._tokens.refresh(old.session_id)
        arguments = {
            "id": old.session_id,
            "old": old.hash,
            "new": new.hash,
            "seconds": self._seconds,
        }
        async with self._pool.connection() as connection:
            row = await (await connection.execute(ROTATE, arguments)).fetchone()
        if row is None:
            # It was ours once: somebody has copied it, and nobody knows who is who.
            await self.end(old.session_id)
            return None
        return UserId(row[0]), new

    async def list(self, user_id: UserId) -> list[Listed]:
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(LIST, (user_id,))).fetchall()
        return [Listed(*row) for row in rows]

    async def end(self, session_id: str) -> bool:
        return await self._end(END, (session_id,))

    async def end_of_user(self, session_id: str, user_id: UserId) -> bool:
        """False if the user has no such session open."""
        return await self._end(END_OF_USER, (session_id, user_id))

    async def end_others(self, user_id: UserId, session_id: str) -> bool:
        """Ends all of the user's sessions but this one."""
        return await self._end(END_OTHERS, (user_id, session_id))

    async def end_all(self, user_id: UserId) -> bool:
        """For a deleted account: nothing of it is kept but when its sessions were."""
        return await self._end(END_ALL, {"user_id": user_id})

    async def _end(self, statement: Any, arguments: Any) -> bool:
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(statement, arguments)).fetchall()
        self._ended.add([session_id for (session_id,) in rows])
        return bool(rows)


async def _first_of(wait: Callable[[], Awaitable[Any]], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await wait()
    except TimeoutError:
        pass
