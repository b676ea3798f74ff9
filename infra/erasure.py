"""The end of a deleted account: what follows from its AccountDeleted, until nothing is left.

It leaves its groups and contacts; its keys are destroyed, and nobody uses them any more; copies
of read models that no projector keeps forget it; its sessions end. Every step may be repeated,
and two processes may do it at once. The sessions come last, so that a client whose request broke
can repeat it; what a crash left undone, any process's sweep finishes. A group or contact that
this code can't read is left by a sweep of code that can: what is personal does not wait for it.
"""

import asyncio
from typing import Any, NamedTuple, Self

import psycopg

from commands.settle_deletion import SettleDeletion
from domain.event import KeyPurpose, Recorded
from domain.ids import ChatId, UserId, user_stream
from domain.user import AccountDeleted
from infra import codec, copies
from infra.database import DOWN, Pool, first_line
from infra.ending import end
from infra.errors import LogError, MessengerError, Unavailable
from infra.executor import Executor, Request
from infra.keyring import LEASE_SECONDS, Keyring
from infra.logs import Logger
from infra.sessions import Sessions

# Groups, or contacts, that are left in one append.
SETTLED_AT_ONCE = 50
SWEEP_SECONDS = 5.0
# So young a deletion is probably still being finished by whoever began it.
YOUNG_SECONDS = 3.0
SWEPT_AT_ONCE = 1_000

DELETION = """
    SELECT position, recorded_at, type, schema_version, data::text
    FROM event_log
    WHERE stream = %s AND type = 'account_deleted'
"""

# The column sorts by bytes, so all that begins with the user is one range.
CLAIMS = """
    SELECT value
    FROM unique_values
    WHERE scope = %(scope)s AND value > %(after)s AND value < %(beyond)s
    ORDER BY value
    LIMIT %(limit)s
"""

# What settling left has nothing behind it.
DROP_CLAIMS = """
    DELETE FROM unique_values
    WHERE scope = %s AND value = ANY (%s)
"""

FINISH = """
    UPDATE erased_keys
    SET finished_at = clock_timestamp()
    WHERE user_id = %s AND finished_at IS NULL
"""

# A key that came back with a backup of the keys is destroyed again.
SWEPT = """
    SELECT
        e.position,
        e.data ->> 'user_id',
        EXISTS (
            SELECT
            FROM erased_keys AS d
            WHERE d.user_id = (e.data ->> 'user_id')::uuid
                AND d.purpose = 'profile'
                AND d.finished_at IS NOT NULL
        )
        AND NOT EXISTS (
            SELECT
            FROM user_keys AS k
            WHERE k.user_id = (e.data ->> 'user_id')::uuid
                AND (k.purpose = 'profile' OR (e.data ->> 'erase_messages')::boolean)
        ),
        e.recorded_at > now() - make_interval(secs => %(young)s)
    FROM event_log AS e
    WHERE e.type = 'account_deleted' AND e.position > %(after)s
    ORDER BY e.position
    LIMIT %(limit)s
"""


class _Settled(NamedTuple):
    """What it took, up to its last event's position; and why it is not all, if so."""

    position: int
    unread: LogError | None


class Erasure:
    """`async with` sweeps."""

    def __init__(
        self, pool: Pool, executor: Executor, keyring: Keyring, sessions: Sessions, logger: Logger
    ) -> None:
        self._pool = pool
        self._executor = executor
        self._keyring = keyring
        self._sessions = sessions
        self._logger = logger
        self._swept_up_to = 0

    async def __aenter__(self) -> Self:
        work = {"erased keys": self._keyring.watch(), "deletions": self._run()}
        self._tasks = [asyncio.create_task(one, name=name) for name, one in work.items()]
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(*self._tasks)

    async def finish(self, user_id: UserId) -> int:
        """The position of the last event that it took. Raises Unavailable."""
        return (await self._settled(user_id)).position

    async def _settled(self, user_id: UserId) -> _Settled:
        try:
            return await self._finish(user_id)
        except DOWN as error:
            raise Unavailable(f"the database does not answer: {first_line(error)}") from error

    async def _finish(self, user_id: UserId) -> _Settled:
        deletion = await self._deletion(user_id)
        position, unread = deletion.position, None
        for scope in ("membership", "contact"):
            settled = await self._settle(user_id, scope)
            position, unread = max(position, settled.position), unread or settled.unread
        purposes: list[KeyPurpose] = ["profile"]
        if isinstance(deletion.event, AccountDeleted) and deletion.event.erase_messages:
            purposes.append("content")
        await self._keyring.destroy(user_id, purposes)
        await asyncio.sleep(LEASE_SECONDS)
        async with self._pool.connection() as connection:
            await copies.forget(connection, deletion)
        await self._sessions.end_all(user_id)
        if unread is None:
            async with self._pool.connection() as connection:
                await connection.execute(FINISH, (user_id,))
        return _Settled(position, unread)

    async def _deletion(self, user_id: UserId) -> Recorded:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(DELETION, (user_stream(user_id),))
            row: Any = await cursor.fetchone()
        position, at, type_name, version, data = row
        return Recorded(position, at, codec.decode(type_name, version, data))

    async def _settle(self, user_id: UserId, scope: str) -> _Settled:
        """Position 0 if there was nothing to settle."""
        position, unread, after = 0, None, f"{user_id}/"
        while values := await self._claims(user_id, scope, after):
            try:
                position = await self._leave(user_id, scope, values)
            except LogError:
                for value in values:
                    try:
                        position = await self._leave(user_id, scope, [value])
                    except LogError as error:
                        unread = error
            after = values[-1]
        return _Settled(position, unread)

    async def _leave(self, user_id: UserId, scope: str, values: list[str]) -> int:
        """The last event's position. Raises LogError where this code can't read all of them."""
        ids = [value.partition("/")[2] for value in values]
        settle = SettleDeletion(
            chat_ids=[ChatId(one) for one in ids] if scope == "membership" else [],
            contact_ids=[UserId(one) for one in ids] if scope == "contact" else [],
        )
        done = await self._executor.execute(Request(settle, user_id))
        async with self._pool.connection() as connection:
            await connection.execute(DROP_CLAIMS, (scope, values))
        return done.position

    async def _claims(self, user_id: UserId, scope: str, after: str) -> list[str]:
        arguments = {
            "scope": scope,
            "after": after,
            "beyond": f"{user_id}0",  # the character after the slash
            "limit": SETTLED_AT_ONCE,
        }
        async with self._pool.connection() as connection:
            cursor = await connection.execute(CLAIMS, arguments)
            return [value for (value,) in await cursor.fetchall()]

    async def _run(self) -> None:
        """Sweeps, for as long as the process lives."""
        while True:
            try:
                await self.sweep()
            except (MessengerError, psycopg.Error, *DOWN) as error:
                self._logger.warning("deletions_not_swept", reason=first_line(error))
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> int:
        """Finishes the deletions that nobody seems to finish; how many it finished."""
        count, after, is_all_finished = 0, self._swept_up_to, True
        while swept := await self._swept(after):
            for position, user_id, is_finished, is_young in swept:
                after = position
                if not is_finished and not is_young:
                    is_finished = await self._finish_late(user_id)
                    count += is_finished
                is_all_finished = is_all_finished and is_finished
                # What is finished stays so: the next sweep begins behind it.
                if is_all_finished:
                    self._swept_up_to = position
        return count

    async def _finish_late(self, user_id: UserId) -> bool:
        """One that can't be finished now costs no other."""
        try:
            settled = await self._settled(user_id)
            if settled.unread is not None:
                raise settled.unread
        except (MessengerError, psycopg.Error) as error:
            self._logger.warning("deletion_unfinished", user=user_id, reason=first_line(error))
            return False
        self._logger.info("deletion_finished", user=user_id)
        return True

    async def _swept(self, after: int) -> list[tuple[int, UserId, bool, bool]]:
        arguments = {"after": after, "young": YOUNG_SECONDS, "limit": SWEPT_AT_ONCE}
        async with self._pool.connection() as connection:
            return await (await connection.execute(SWEPT, arguments)).fetchall()
