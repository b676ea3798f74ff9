"""Brings an export into an empty log, in batches: each is one transaction, and wholly there or not.

The whole file is read and checked before anything is written. What is in is kept with the digest
of the last line of it, in the transaction of that line: broken off at any moment, the import goes
on from there, and only with the same file. Until it is finished nobody else can write to the log.
Texts are sealed with keys made here; what was erased stays so. The epoch becomes the export's, so
that clients resume at the positions that they had.
"""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

import msgspec
import psycopg

from domain.event import Event
from domain.user import UserRegistered
from infra import codec
from infra.codec import KeyMissing
from infra.database import DOWN, Connection, first_line
from infra.errors import BadExport, Stopped, Unavailable
from infra.executor import former_scope
from infra.keyring import Blinding, Keyring, Secret
from infra.moving import lines
from infra.moving.lines import (
    End,
    Erased,
    FormerSecret,
    Header,
    Line,
    LoggedEvent,
    Numbered,
    Object,
    RememberedCommand,
    Skipped,
    Unique,
)
from infra.objects import Objects
from infra.rebuild import Progress

BATCH_LINES = 500
BATCH_BYTES = 4_000_000
OBJECTS_AT_ONCE = 16
OF_THE_LOG = (Object, LoggedEvent, End)
IMPORT_LOCK = 0x696D706F  # "impo"

LOCK = """
    SELECT pg_try_advisory_lock(%s)
"""

UNDER_WAY = """
    SELECT digest, lines, finished_at IS NOT NULL
    FROM imports
"""

LOCK_HEAD = """
    SELECT position
    FROM log_head
    FOR UPDATE
"""

BEGIN = """
    INSERT INTO imports (digest, lines, begun_at)
    VALUES ('', 0, clock_timestamp())
"""

SET_EPOCH = """
    UPDATE log_head
    SET epoch = %s
"""

ALLOW = """
    SELECT set_config('messenger.importing', 'on', true)
"""

# By compare-and-set, as checkpoints are moved.
MOVE = """
    UPDATE imports
    SET digest = %(digest)s,
        lines = %(lines)s,
        finished_at = CASE WHEN %(finished)s THEN clock_timestamp() END
    WHERE digest = %(before)s AND finished_at IS NULL
"""

MOVE_HEAD = """
    UPDATE log_head
    SET position = %s
    WHERE position = %s
"""

# Their numbers tell running processes of them.
ADD_ERASED = """
    INSERT INTO erased_keys (user_id, purpose, id, erased_at, finished_at)
    SELECT new.user_id, new.purpose, last.id + new.ordinal, new.erased_at, new.finished_at
    FROM (
        SELECT coalesce(max(id), 0) AS id
        FROM erased_keys
    ) AS last
    CROSS JOIN ROWS FROM (
        json_to_recordset(%s::json)
            AS (user_id uuid, purpose text, erased_at timestamptz, finished_at timestamptz)
    ) WITH ORDINALITY AS new (user_id, purpose, erased_at, finished_at, ordinal)
"""

ADD_UNIQUE = """
    INSERT INTO unique_values (scope, value, holder)
    SELECT scope, value, holder
    FROM json_to_recordset(%s::json) AS new (scope text, value text, holder text)
"""

ADD_COMMANDS = """
    INSERT INTO command_keys (scope, key, body_hash, position, answer, secret)
    SELECT scope, key, decode(body_hash, 'hex'), position, answer, secret
    FROM json_to_recordset(%s::json) AS new (
        scope text, key text, body_hash text, position bigint, answer json, secret text
    )
    ON CONFLICT (scope, key) DO UPDATE
    SET body_hash = excluded.body_hash,
        position = excluded.position,
        answer = excluded.answer,
        secret = excluded.secret
"""

ADD_SKIPS = """
    INSERT INTO skipped_events (projection, position, type, reason, why, skipped_at)
    SELECT projection, position, type, reason, why, skipped_at
    FROM json_to_recordset(%s::json) AS new (
        projection text, position bigint, type text, reason text, why text, skipped_at timestamptz
    )
"""

ADD_EVENTS = """
    INSERT INTO event_log (
        position, event_id, stream, stream_version, type, schema_version, data, metadata, recorded_at
    )
    SELECT
        position, event_id, stream, stream_version, type, schema_version, data, metadata, recorded_at
    FROM json_to_recordset(%s::json) AS new (
        position bigint, event_id uuid, stream text, stream_version int, type text,
        schema_version int, data json, metadata json, recorded_at timestamptz
    )
"""

# An event whose stream has not the one before it.
UNCONNECTED = """
    SELECT e.position, e.stream, e.stream_version
    FROM event_log AS e
    WHERE e.position > %s
        AND e.position <= %s
        AND e.stream_version > 1
        AND NOT EXISTS (
            SELECT
            FROM event_log AS before
            WHERE before.stream = e.stream
                AND before.stream_version = e.stream_version - 1
                AND before.position < e.position
        )
    ORDER BY e.position
    LIMIT 1
"""


class Target(NamedTuple):
    """Where the log goes to."""

    connection: Connection
    keyring: Keyring
    secret: Secret
    objects: Objects


class Imported(NamedTuple):
    """`lines` are those imported now: none if all were there already."""

    head: int
    epoch: int
    lines: int
    objects: int


class _Survey(NamedTuple):
    """What the file is, seen as a whole; `reached` is its digest at a line asked for."""

    header: Header
    lines: int
    reached: str


class _UnderWay(NamedTuple):
    digest: str
    lines: int
    is_finished: bool


async def import_export(path: Path, target: Target, progress: Progress) -> Imported:
    """Raises BadExport, Stopped where this log can't take it, and Unavailable."""
    try:
        return await _import(path, target, progress)
    except DOWN as error:
        raise Unavailable(f"the database does not answer: {first_line(error)}") from error
    except OSError as error:
        raise BadExport(f"{error.filename or path} can't be read: {error.strerror}") from error


async def _import(path: Path, target: Target, progress: Progress) -> Imported:
    row: Any = await (await target.connection.execute(LOCK, (IMPORT_LOCK,))).fetchone()
    if not row[0]:
        raise Unavailable("another import is under way")
    under_way = await _under_way(target.connection)
    survey = await asyncio.to_thread(_survey, path, under_way.lines if under_way else 0)
    if under_way is None:
        await _begin(target.connection)
        under_way = _UnderWay("", 0, False)
    elif survey.reached != under_way.digest:
        raise BadExport(
            f"line {under_way.lines} of {path.name} is not that of the export of which "
            f"{under_way.lines} lines were imported: only with that one it can go on"
        )
    header = survey.header
    if under_way.is_finished:
        return Imported(header.head, header.epoch, 0, 0)
    batches = _Batches(path, target, under_way, header.head, progress)
    await batches.write_all()
    return Imported(header.head, header.epoch, survey.lines - under_way.lines, batches.objects)


async def _under_way(connection: Connection) -> _UnderWay | None:
    row = await (await connection.execute(UNDER_WAY)).fetchone()
    return _UnderWay(*row) if row else None


def _survey(path: Path, reached: int) -> _Survey:
    """Reads all of it, with the files of the objects that are not in yet."""
    header, number, digest_reached = None, 0, ""
    for number, digest, _, line in lines.read(path):
        if number == reached:
            digest_reached = digest
        match line:
            case Header():
                header = line
            case Object() if number > reached:
                _checked(path, number, line)
            case _:
                pass
    assert header is not None, "the first line of every export"
    return _Survey(header, number, digest_reached)


def _checked(path: Path, number: int, line: Object) -> Path:
    """The object's file, read whole."""
    file = lines.objects_directory(path) / line.key
    size_bytes = file.stat().st_size if file.is_file() else None
    if size_bytes != line.size_bytes or size_bytes > lines.MAX_OBJECT_BYTES:
        found = "is not there" if size_bytes is None else f"has {size_bytes} bytes"
        raise _wrong(path, number, f"{file} {found}, {line.size_bytes} were exported")
    if lines.digest_of(file) != line.sha256:
        raise _wrong(path, number, f"{file} was altered")
    return file


def _wrong(path: Path, number: int, reason: str) -> BadExport:
    return BadExport(f"line {number} of {path.name}: {reason}")


async def _begin(connection: Connection) -> None:
    async with connection.transaction():
        row: Any = await (await connection.execute(LOCK_HEAD)).fetchone()
        if row[0]:
            raise Stopped(f"the log has {row[0]} events: only an empty one can take an export")
        await connection.execute(BEGIN)


class _Batches:
    """The lines that are not in yet, some at a time."""

    def __init__(
        self, path: Path, target: Target, under_way: _UnderWay, head: int, progress: Progress
    ) -> None:
        self._path = path
        self._target = target
        self._connection = target.connection
        self._digest = under_way.digest
        self._lines = under_way.lines
        self._head = head
        self._progress = progress
        self.objects = 0

    async def write_all(self) -> None:
        for batch in _batches(islice(lines.read(self._path), self._lines, None)):
            await self._put_objects(batch)
            await self._write_or_name(batch)

    async def _write_or_name(self, batch: Sequence[Numbered]) -> None:
        """What the database refuses is looked for line by line; what is before it, is taken."""
        try:
            await self._write(batch)
        except (psycopg.IntegrityError, psycopg.DataError, KeyMissing) as error:
            if len(batch) == 1:
                raise _wrong(self._path, batch[0].number, first_line(error)) from error
            for line in batch:
                await self._write_or_name([line])

    async def _write(self, batch: Sequence[Numbered]) -> None:
        events = _of(batch, LoggedEvent)
        sealed = await self._sealed(events)
        async with self._connection.transaction():
            await self._connection.execute(ALLOW)
            await self._connection.execute(LOCK_HEAD)
            await self._move(batch)
            await self._add_beside(batch)
            await self._add_events(events, sealed)
        self._digest, self._lines = batch[-1].digest, batch[-1].number
        if events:
            self._progress(events[-1].position, self._head)

    async def _move(self, batch: Sequence[Numbered]) -> None:
        moved = {
            "digest": batch[-1].digest,
            "lines": batch[-1].number,
            "finished": isinstance(batch[-1].line, End),
            "before": self._digest,
        }
        if (await self._connection.execute(MOVE, moved)).rowcount != 1:
            raise Stopped("another import went on with this log")

    async def _add_beside(self, batch: Sequence[Numbered]) -> None:
        for number, _, _, line in batch:
            match line:
                case Header():
                    await self._connection.execute(SET_EPOCH, (line.epoch,))
                case FormerSecret():
                    await self._keep_secret(number, line)
                case _:
                    pass
        await self._add(ADD_ERASED, _of(batch, Erased))
        await self._add(ADD_UNIQUE, [self._unique(line) for line in _of(batch, Unique)])
        commands = [self._command(line) for line in _of(batch, RememberedCommand)]
        await self._add(ADD_COMMANDS, commands)
        await self._add(ADD_SKIPS, _of(batch, Skipped))

    async def _add(self, statement: LiteralString, rows: Sequence[object]) -> None:
        if rows:
            await self._connection.execute(statement, (msgspec.json.encode(rows).decode(),))

    async def _keep_secret(self, number: int, line: FormerSecret) -> None:
        former = Blinding(line.key)
        if former.name != line.name:
            raise _wrong(self._path, number, f"the key of {line.name} is not its own")
        if former.name != self._target.secret.blinding.name:
            await self._target.secret.keep_former(self._connection, former)

    def _unique(self, line: Unique) -> dict[str, str]:
        is_former = line.secret not in (None, self._target.secret.blinding.name)
        scope = former_scope(line.scope, line.secret or "") if is_former else line.scope
        return {"scope": scope, "value": line.value, "holder": line.holder}

    def _command(self, line: RememberedCommand) -> dict[str, object]:
        row = msgspec.structs.asdict(line)
        if line.secret == self._target.secret.blinding.name:
            row["secret"] = None
        return row

    # ------------------------------------------------------------------------------ events

    async def _sealed(self, events: Sequence[LoggedEvent]) -> list[LoggedEvent]:
        """Those that nothing can read stay as they are."""
        decoded = [line.decoded() for line in events]
        read = [event for event in decoded if event is not None]
        await self._target.keyring.create(
            [event.user_id for event in read if isinstance(event, UserRegistered)]
        )
        await self._target.keyring.load(codec.key_ids(read))
        return [
            line if event is None else self._sealed_line(line, event)
            for line, event in zip(events, decoded, strict=True)
        ]

    def _sealed_line(self, line: LoggedEvent, event: Event) -> LoggedEvent:
        sealed = codec.sealed_data(event, bytes(line.data), self._target.keyring)
        return msgspec.structs.replace(line, data=msgspec.Raw(sealed))

    async def _add_events(
        self, events: Sequence[LoggedEvent], sealed: Sequence[LoggedEvent]
    ) -> None:
        if not events:
            return
        before, last = events[0].position - 1, events[-1].position
        await self._add(ADD_UNIQUE, [*self._usernames(events)])
        await self._add(ADD_EVENTS, sealed)
        row = await (await self._connection.execute(UNCONNECTED, (before, last))).fetchone()
        if row is not None:
            raise psycopg.IntegrityError(f"{row[1]} can't go on with version {row[2]}")
        if (await self._connection.execute(MOVE_HEAD, (last, before))).rowcount != 1:
            raise Stopped(f"something else was written to the log after position {before}")

    def _usernames(self, events: Sequence[LoggedEvent]) -> Iterator[dict[str, str]]:
        """Held under the hashes of this instance."""
        for line in events:
            event = line.decoded() if line.type == UserRegistered.type else None
            if isinstance(event, UserRegistered) and event.username is not None:
                yield {
                    "scope": "username",
                    "value": self._target.secret.blind("username", event.username.encode()),
                    "holder": event.stream,
                }

    # ----------------------------------------------------------------------------- objects

    async def _put_objects(self, batch: Sequence[Numbered]) -> None:
        """Before the events that name them: what an event names is there."""
        wanted = [(one.number, one.line) for one in batch if isinstance(one.line, Object)]
        for first in range(0, len(wanted), OBJECTS_AT_ONCE):
            some = wanted[first : first + OBJECTS_AT_ONCE]
            await asyncio.gather(*(self._put(number, line) for number, line in some))

    async def _put(self, number: int, line: Object) -> None:
        file = await asyncio.to_thread(_checked, self._path, number, line)
        await self._target.objects.put(line.key, file, line.file_type)
        self.objects += 1


def _of(batch: Sequence[Numbered], kind: type[Line]) -> list[Any]:
    return [numbered.line for numbered in batch if isinstance(numbered.line, kind)]


def _batches(numbered: Iterator[Numbered]) -> Iterator[list[Numbered]]:
    """Which keys are erased has to be there before events are sealed, and what is skipped before
    a projector sees them: a batch has either."""
    for _, group in groupby(numbered, lambda one: isinstance(one.line, OF_THE_LOG)):
        batch: list[Numbered] = []
        size_bytes = 0
        for one in group:
            batch.append(one)
            size_bytes += one.size_bytes
            if len(batch) >= BATCH_LINES or size_bytes >= BATCH_BYTES:
                yield batch
                batch, size_bytes = [], 0
        if batch:
            yield batch
