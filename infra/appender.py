"""Group commit: one appender a process, one connection, one server-side call a batch.

While a batch commits, the next one forms; nothing is delayed when idle. The queue is
bounded: beyond it callers get Unavailable at once. A batch is bounded by count and bytes.

When the connection breaks in the middle of a call, its outcome is unknown. The appender
then ends the old session on the server, so that nothing of it can land any more, looks up
which of the batch's events are in the log, and appends the rest again: a caller hears
`appended` exactly when its events are durable, once.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import datetime
from time import perf_counter
from typing import Any, Literal, NamedTuple, Self, get_args

import msgspec
import psycopg

from domain.ids import StreamId
from infra import database
from infra.database import Connection, first_line
from infra.ending import end
from infra.errors import Unavailable
from infra.metrics import AppendMetrics

MAX_BATCH_COMMANDS = 512
MAX_BATCH_BYTES = 4_000_000
RECONNECT_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)
SESSION_END_SECONDS = 10.0

APPEND = """
    SELECT verdict, last_position, first_answer::text, detail
    FROM append_v1(
        %s::text[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[], %s::json,
        %s::text[], %s::text[], %s::text[], %s::text[],
        %s::int[], %s::text[], %s::text[], %s::text[], %s::boolean[]
    )
"""

SESSION = """
    SELECT pid, backend_start
    FROM pg_stat_activity
    WHERE pid = pg_backend_pid()
"""

END_SESSION = """
    SELECT pg_terminate_backend(pid, %s)
    FROM pg_stat_activity
    WHERE pid = %s AND backend_start = %s
"""

LANDED = """
    SELECT max(position)
    FROM event_log
    WHERE stream = %s AND event_id = ANY (%s::uuid[])
"""

Verdict = Literal["appended", "replayed", "reused", "conflict", "taken"]


class EventRow(NamedTuple):
    """An event ready to be written; `data` and `metadata` are JSON."""

    event_id: str
    stream: StreamId
    type: str
    schema_version: int
    data: bytes
    metadata: bytes
    recorded_at: str


class ClaimRow(NamedTuple):
    scope: str
    value: str
    holder: str
    release: bool


class KeyRow(NamedTuple):
    """An idempotency key with the hash of its command's body, and the answer to remember."""

    scope: str
    key: str
    body_hash: str
    answer: str


class Append(NamedTuple):
    """One command's wish: events, guards (stream and the version seen), claims, its key."""

    events: list[EventRow]
    guards: dict[StreamId, int]
    claims: list[ClaimRow]
    key: KeyRow | None

    def bytes(self) -> int:
        return sum(len(event.data) + len(event.metadata) for event in self.events)


class Outcome(NamedTuple):
    verdict: Verdict
    position: int
    answer: str | None
    detail: str | None


class _Pending(NamedTuple):
    append: Append
    size_bytes: int
    outcome: asyncio.Future[Outcome]
    came_at: float


class _Session(NamedTuple):
    """Who carries out our calls on the server; a pid alone may come again."""

    connection: Connection
    pid: int
    began_at: datetime


class Appender:
    """`async with` runs it. `on_commit` is told the log's new head after each batch."""

    def __init__(
        self,
        url: str,
        *,
        queue_limit: int,
        on_commit: Callable[[int], None] = lambda _: None,
        metrics: AppendMetrics | None = None,
    ) -> None:
        self._url = url
        self._queue_limit = queue_limit
        self._on_commit = on_commit
        self._metrics = metrics or AppendMetrics()
        self._verdicts = {
            verdict: self._metrics.verdicts.labels(verdict) for verdict in get_args(Verdict)
        }
        self._queue: deque[_Pending] = deque()
        self._wake = asyncio.Event()
        self._connection: Connection | None = None
        self._session: _Session | None = None
        self.batches = 0
        self.commands = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="appender")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)
        self._fail(list(self._queue), Unavailable("the server is stopping"))
        self._queue.clear()
        if self._connection is not None:
            await self._connection.close()

    @property
    def queued(self) -> int:
        return len(self._queue)

    async def append(self, append: Append) -> Outcome:
        """Raises Unavailable if the queue is full or the database stays away."""
        if self._task.done():
            raise Unavailable("the server is stopping")
        if len(self._queue) >= self._queue_limit:
            raise Unavailable("too many commands wait to be written")
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.append(_Pending(append, append.bytes(), outcome, perf_counter()))
        self._wake.set()
        return await outcome

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                await self._write_or_tell(self._next_batch())

    async def _write_or_tell(self, batch: list[_Pending]) -> None:
        try:
            await self._write(batch)
        except asyncio.CancelledError:
            self._fail(batch, Unavailable("the server is stopping"))
            raise
        except psycopg.DataError as error:
            # What the database can't take of one command may not cost the others.
            if len(batch) == 1:
                self._fail(batch, Unavailable(f"not written: {first_line(error)}"))
            for pending in batch if len(batch) > 1 else []:
                await self._write_or_tell([pending])
        except Exception as error:  # noqa: BLE001 - whatever it is, callers hear of it
            self._fail(batch, Unavailable(f"not written: {first_line(error)}"))

    def _next_batch(self) -> list[_Pending]:
        batch: list[_Pending] = []
        size_bytes = 0
        while self._queue and len(batch) < MAX_BATCH_COMMANDS and size_bytes < MAX_BATCH_BYTES:
            pending = self._queue.popleft()
            batch.append(pending)
            size_bytes += pending.size_bytes
        return batch

    async def _write(self, batch: list[_Pending]) -> None:
        for pause in (*RECONNECT_SECONDS, None):
            try:
                connection = self._connection or await self._connect()
                batch = await self._settle_unknown(connection, batch)
                if batch:
                    await self._call(connection, batch)
                return
            except (psycopg.OperationalError, psycopg.InterfaceError, Unavailable) as error:
                self._metrics.interruptions.inc()
                if self._connection is not None and self._connection.closed:
                    self._connection = None
                if pause is None:
                    raise Unavailable(f"the log can't be written: {first_line(error)}") from error
                await asyncio.sleep(pause)

    async def _connect(self) -> Connection:
        self._connection = await database.connect(self._url, name="appender")
        return self._connection

    async def _call(self, connection: Connection, batch: list[_Pending]) -> None:
        if self._session is None:
            row: Any = await (await connection.execute(SESSION)).fetchone()
            self._session = _Session(connection, *row)
        began = perf_counter()
        cursor = await connection.execute(APPEND, _arguments([item.append for item in batch]))
        rows = await cursor.fetchall()
        self._count(batch, rows, began)
        head = 0
        for pending, row in zip(batch, rows, strict=True):
            head = max(head, row[1])
            self._resolve(pending, Outcome(*row))
        self._on_commit(head)

    def _count(self, batch: list[_Pending], rows: list[Any], began: float) -> None:
        metrics = self._metrics
        self.batches += 1
        self.commands += len(batch)
        metrics.batch_commands.observe(len(batch))
        metrics.wait_seconds.observe(began - batch[0].came_at)
        metrics.commit_seconds.observe(perf_counter() - began)
        events, verdicts = 0, dict.fromkeys(self._verdicts, 0)
        for pending, row in zip(batch, rows, strict=True):
            verdicts[row[0]] += 1
            if row[0] == "appended":
                events += len(pending.append.events)
        metrics.events.inc(events)
        for verdict, count in verdicts.items():
            if count:
                self._verdicts[verdict].inc(count)

    async def _settle_unknown(
        self, connection: Connection, batch: list[_Pending]
    ) -> list[_Pending]:
        """After a broken call: answers what had landed, gives back what had not."""
        session = self._session
        if session is None or session.connection is connection:
            return batch
        timeout_ms = int(SESSION_END_SECONDS * 1000)
        cursor = await connection.execute(END_SESSION, (timeout_ms, session.pid, session.began_at))
        if (False,) in await cursor.fetchall():
            raise Unavailable("the session of a broken call does not end")
        rest = [item for item in batch if not await self._had_landed(connection, item)]
        # Not before: should this connection break too, all of it has to be asked again.
        self._session = None
        return rest

    async def _had_landed(self, connection: Connection, pending: _Pending) -> bool:
        events = pending.append.events
        if not events:
            return False
        ids = [event.event_id for event in events]
        cursor = await connection.execute(LANDED, (events[-1].stream, ids))
        row: Any = await cursor.fetchone()
        if row[0] is None:
            return False
        self._resolve(pending, Outcome("appended", row[0], None, None))
        return True

    def _resolve(self, pending: _Pending, outcome: Outcome) -> None:
        if not pending.outcome.done():
            pending.outcome.set_result(outcome)

    def _fail(self, batch: list[_Pending], error: Exception) -> None:
        for pending in batch:
            if not pending.outcome.done():
                pending.outcome.set_exception(error)


def _arguments(appends: list[Append]) -> list[Any]:
    streams: dict[StreamId, int] = {}
    guard_ends, guard_streams, guard_versions = [], [], []
    event_ends, event_streams = [], []
    events: list[Any] = []
    for append in appends:
        for stream, version in append.guards.items():
            guard_streams.append(streams.setdefault(stream, len(streams) + 1))
            guard_versions.append(version)
        guard_ends.append(len(guard_streams))
        for event in append.events:
            event_streams.append(streams.setdefault(event.stream, len(streams) + 1))
            events.append(_row(event))
        event_ends.append(len(event_streams))
    return [
        # Stream ids are categories and UUIDs: an array literal of them needs no quoting.
        "{" + ",".join(streams) + "}",
        _integers(guard_ends),
        _integers(guard_streams),
        _integers(guard_versions),
        _integers(event_ends),
        _integers(event_streams),
        msgspec.json.encode(events).decode(),
        *_key_arguments(appends),
        *_claim_arguments(appends),
    ]


def _row(event: EventRow) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "type": event.type,
        "schema_version": event.schema_version,
        "data": msgspec.Raw(event.data),
        "metadata": msgspec.Raw(event.metadata),
        "recorded_at": event.recorded_at,
    }


def _integers(numbers: list[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


def _key_arguments(appends: list[Append]) -> list[Any]:
    if all(append.key is None for append in appends):
        return [None] * len(KeyRow._fields)
    nothing = (None,) * len(KeyRow._fields)
    return [list(column) for column in zip(*(a.key or nothing for a in appends), strict=True)]


def _claim_arguments(appends: list[Append]) -> list[Any]:
    rows = [(n, *claim) for n, append in enumerate(appends, 1) for claim in append.claims]
    if not rows:
        return [None] * (1 + len(ClaimRow._fields))
    return [list(column) for column in zip(*rows, strict=True)]
