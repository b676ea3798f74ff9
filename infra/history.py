"""Whether the log is still the one that others know.

PostgreSQL restored to an earlier point, or a standby that lacked something, gives positions out a
second time, for other events: what then went on as before would mix two histories. Two things
know better: JetStream, whose copy is ahead of the log, or ends with another event than the log
has there, or is of a later epoch; and each process that has seen the log before. Whoever follows
the log asks them, and stops with one line (Stopped).

`new_epoch` is what an operator does then: the log as it is now goes on under a new number, with a
new stream in JetStream, and cursors of clients say of which epoch they are.
"""

import asyncio
from typing import Any

import msgspec
from nats.js.errors import NotFoundError

from infra import event_log
from infra.bus import BUS_ERRORS, Bus, Envelope, epoch_of, stream_name
from infra.database import DOWN, Connection, Pool
from infra.errors import Stopped, Unavailable
from infra.event_log import Head

REMEDY = (
    "the log went back in time; if it is the one to go on with: messenger log new-epoch "
    "(README, Going back in time)"
)
WATCH_SECONDS = 1.0
COMPARED_AT_ONCE = 100
NOTHING = ""

EVENT_ID = """
    SELECT event_id::text
    FROM event_log
    WHERE position = %s
"""

EVENT_IDS = """
    SELECT position, event_id::text
    FROM event_log
    WHERE position > %s AND position <= %s
    ORDER BY position
"""

# A log goes back with another server, one that was started again, or tables that were made again.
LOOK = """
    SELECT
        h.position,
        h.epoch,
        newest.event_id::text,
        known.event_id::text,
        concat_ws(
            ' ',
            pg_postmaster_start_time(),
            inet_server_addr(),
            inet_server_port(),
            'log_head'::regclass::oid,
            (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
        )
    FROM log_head AS h
    LEFT JOIN event_log AS newest ON newest.position = h.position
    LEFT JOIN event_log AS known ON known.position = %s
"""

HALF_IMPORT = "nothing can be written: the import into this log is not finished"

HALF_IMPORTED = """
    SELECT begun_at
    FROM imports
    WHERE finished_at IS NULL
"""

BEGIN_EPOCH = """
    UPDATE log_head
    SET epoch = greatest(epoch, %s) + 1
    RETURNING position, epoch
"""


class Foreign(Stopped):
    """What is at the end of the copy is no event of any log: somebody else published there."""


async def check_copy(bus: Bus, connection: Connection, *, at: int | None = None) -> None:
    """Raises Stopped if the copy knows a later log than this one, by its last event or by that
    `at` a position; Unavailable."""
    head = await event_log.head(connection)
    stream = stream_name(head.epoch)
    extent = await bus.extent(stream)
    if extent is None:
        await _refuse_later_epoch(bus, head)
        return
    if extent.last > head.position:
        head = await event_log.head(connection)  # a relay may have been quicker than we
    if at is None or extent.last > head.position:
        at = extent.last
    copied = await _event_id(bus, stream, at) if at else NOTHING
    if at > head.position:
        told = f"{stream} ends at {at} but the log at {head.position}: {REMEDY}"
        raise Foreign(told) if copied is None else Stopped(told)
    if copied == NOTHING:
        return
    row = await (await connection.execute(EVENT_ID, (at,))).fetchone()
    told = f"{stream} holds another event at {at} than the log: "
    if copied is None:
        raise Foreign(f"{told}somebody else published there (README, Going back in time)")
    if row is None or copied != row[0]:
        raise Stopped(f"{told}{REMEDY}")


async def first_difference(
    bus: Bus, connection: Connection, stream: str, *, last: int, events: int
) -> int | None:
    """The first of so many positions up to the last at which a copy does not hold the log's event.
    Raises Unavailable."""
    rows = await (await connection.execute(EVENT_IDS, (last - events, last))).fetchall()
    for begin in range(0, len(rows), COMPARED_AT_ONCE):
        logged = rows[begin : begin + COMPARED_AT_ONCE]
        copied = await asyncio.gather(*(_event_id(bus, stream, position) for position, _ in logged))
        for (position, event_id), copied_id in zip(logged, copied, strict=True):
            if copied_id not in (event_id, NOTHING):
                return int(position)
    return None


async def _event_id(bus: Bus, stream: str, sequence: int) -> str | None:
    """Of the event in a copy; NOTHING if none is there, None if it is no event of that position."""
    try:
        message = await bus.jetstream.get_msg(stream, sequence)
    except NotFoundError:
        return NOTHING  # purged or aged: nothing there that could differ
    except BUS_ERRORS as error:
        raise Unavailable(f"JetStream does not answer: {error}") from error
    try:
        envelope = msgspec.json.decode(message.data or b"", type=Envelope)
    except msgspec.DecodeError:
        return None
    return envelope.event_id if envelope.position == sequence else None


async def _refuse_later_epoch(bus: Bus, head: Head) -> None:
    """Restored to before a new epoch began."""
    taken_by = await bus.stream_of_events()
    if epoch_of(taken_by) > head.epoch:
        raise Stopped(f"{taken_by} is of a later epoch than the log's {head.epoch}: {REMEDY}")


class Witness:
    """What one process has seen of the log. It asks JetStream when the server is another one."""

    def __init__(self, pool: Pool, bus: Bus) -> None:
        self._pool = pool
        self._bus = bus
        self._known: tuple[int, str | None] = (0, None)
        self._epoch = 0
        self._server = self._compared = ""

    @property
    def is_sure(self) -> bool:
        """Whether JetStream was asked about the server that was looked at last: until then a log
        that went back is not told from one that did not, by a process that has just started."""
        return self._compared == self._server

    async def look(self) -> Head:
        """The head. Raises Stopped, or what a database that is away raises."""
        async with self._pool.connection() as connection:
            position, known = self._known
            row: Any = await (await connection.execute(LOOK, (position,))).fetchone()
            head = Head(*row[:2])
            self._compare(head, position, known, found=row[3])
            self._server = row[4]
            if not self.is_sure and await self._has_asked(connection):
                self._compared = self._server
        self._known, self._epoch = (head.position, row[2]), head.epoch
        return head

    def _compare(self, head: Head, position: int, known: str | None, *, found: str | None) -> None:
        if self._epoch and head.epoch != self._epoch:
            raise Stopped(
                f"the log is of epoch {head.epoch} and no more of {self._epoch}: start this again"
            )
        if found != known:
            what = "is another one" if found else f"ends at {head.position}"
            raise Stopped(f"the log {what}, but had an event {position} before: {REMEDY}")

    async def _has_asked(self, connection: Connection) -> bool:
        """While NATS is away, later looks ask. What strangers publish there is not read."""
        try:
            await check_copy(self._bus, connection)
        except Foreign:
            return True
        except Unavailable:
            return False
        return True

    async def watch(self) -> None:
        """For as long as the process lives. Raises Stopped."""
        while True:
            try:
                await self.look()
            except (Unavailable, *DOWN):
                pass  # whoever needs the database says so
            await asyncio.sleep(WATCH_SECONDS)


async def new_epoch(bus: Bus, connection: Connection) -> Head:
    """The log goes on as it is, and never under a number that was used. Raises Unavailable."""
    await refuse_half_imported(connection)
    used = epoch_of(await bus.stream_of_events())
    row: Any = await (await connection.execute(BEGIN_EPOCH, (used,))).fetchone()
    return Head(*row)


async def refuse_half_imported(connection: Connection) -> None:
    """What is imported goes on under the epoch that it had. Raises Unavailable."""
    if await is_half_imported(connection):
        raise Unavailable("the import into this log is not finished: go on with it first")


async def is_half_imported(connection: Connection) -> bool:
    """Nobody else can write meanwhile."""
    return await (await connection.execute(HALF_IMPORTED)).fetchone() is not None
