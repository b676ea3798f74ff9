"""Writes a whole log into a file, with the objects that it still names beside it.

The log is read as it was when the export began; what stands beside it (erased keys, unique values,
idempotency keys, skips) in one snapshot of that moment. If an account is erased meanwhile, what was
written of it may be half of it, and the export begins anew. Files are given their names when all
is written: one that is there is whole. Two exports of one log are equal, byte by byte.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag

from domain.attachment import SIZES, AttachmentUploaded
from domain.avatar import Owner, avatar_key
from domain.chat import GroupUpdated
from domain.event import Event
from domain.ids import message_stream, user_stream
from domain.user import ProfileUpdated
from infra import codec, database, event_log, history
from infra.database import Connection
from infra.errors import LogError, Unavailable
from infra.event_log import Head
from infra.keyring import LAST_ERASED, LOOK_SECONDS, Keyring, Secret
from infra.moving import lines
from infra.moving.lines import LoggedEvent, Object, Writer
from infra.objects import Objects
from infra.rebuild import Progress
from projections import NAMES

ATTEMPTS = 5
PAGE_EVENTS = 200
PAGE_ROWS = 1_000
OBJECTS_AT_ONCE = 16
SNAPSHOT_TIMEOUT_MS = 3_600_000
EXPORT_LOCK = 0x6578706F  # "expo"

# Two at once could take each other's files for their own.
LOCK = """
    SELECT pg_try_advisory_lock(%s)
"""

EVENTS = """
    SELECT position, event_id::text, stream, stream_version, type, schema_version, data::text,
        metadata::text, recorded_at
    FROM event_log
    WHERE position > %s AND position <= %s
    ORDER BY position
"""

ERASED = """
    SELECT user_id::text, purpose, erased_at, finished_at
    FROM erased_keys
    ORDER BY id
"""

# Names that can be read in the log are made from it; those of whom no key opens, only here.
UNIQUE = """
    SELECT scope, value, holder, secret
    FROM (
        SELECT
            split_part(u.scope, ' ', 1) AS scope,
            u.value,
            u.holder,
            CASE
                WHEN u.scope = 'username' THEN %(own)s
                ELSE nullif(split_part(u.scope, ' ', 2), '')
            END AS secret
        FROM unique_values AS u
    ) AS held
    WHERE scope <> 'username'
        OR NOT EXISTS (
            SELECT
            FROM user_keys AS k
            WHERE k.purpose = 'profile' AND 'user-' || k.user_id = held.holder
        )
    ORDER BY scope COLLATE "C", secret COLLATE "C" NULLS FIRST, value COLLATE "C"
"""

COMMANDS = """
    SELECT scope, key, encode(body_hash, 'hex'), coalesce(secret, %(own)s), position, answer::text
    FROM command_keys
    ORDER BY scope COLLATE "C", key COLLATE "C"
"""

# Of read models that are no more there is nothing to do without.
SKIPS = """
    SELECT projection, position, type, reason, why, skipped_at
    FROM skipped_events
    WHERE projection = ANY (%(projections)s)
    ORDER BY projection COLLATE "C", position
"""

SECRETS = """
    SELECT DISTINCT coalesce(secret, %(own)s)
    FROM command_keys
    UNION
    SELECT CASE
        WHEN u.scope = 'username' THEN %(own)s
        ELSE split_part(u.scope, ' ', 2)
    END
    FROM unique_values AS u
    WHERE split_part(u.scope, ' ', 1) = 'username'
        AND NOT EXISTS (
            SELECT
            FROM user_keys AS k
            WHERE k.purpose = 'profile' AND 'user-' || k.user_id = u.holder
        )
    ORDER BY 1
"""

# Which of the things that events tell of have ended by the head.
ENDED = """
    SELECT DISTINCT awaited.thing
    FROM unnest(%(things)s::int[], %(streams)s::text[], %(versions)s::int[], %(types)s::text[])
        AS awaited (thing, stream, version, type)
    JOIN event_log AS e
        ON e.stream = awaited.stream
        AND e.stream_version > awaited.version
        AND e.type = split_part(awaited.type, ' ', 1)
    WHERE e.position <= %(head)s
        AND (awaited.type <> 'account_deleted erasing' OR (e.data ->> 'erase_messages')::boolean)
"""


class Exported(NamedTuple):
    """`missing`: keys of objects that the log names and the store does not have."""

    head: Head
    lines: int
    objects: int
    missing: list[str]


class Source(NamedTuple):
    """Where the log is."""

    connection: Connection
    keyring: Keyring
    secret: Secret
    objects: Objects


class _Ending(NamedTuple):
    """An event of this type in the stream, after this version, ends it."""

    stream: str
    version: int
    type: str


class _Thing(NamedTuple):
    """Objects that an event names, and what ends them."""

    keys: Sequence[str]
    endings: Sequence[_Ending]


async def export(path: Path, source: Source, progress: Progress) -> Exported:
    """Raises Unavailable, LogError, and Stopped where the secret is not the log's."""
    for target in (path, lines.objects_directory(path)):
        if target.exists():
            raise Unavailable(f"{target} is there already")
    row: Any = await (await source.connection.execute(LOCK, (EXPORT_LOCK,))).fetchone()
    if not row[0]:
        raise Unavailable("another export is under way")
    await history.refuse_half_imported(source.connection)
    try:
        for _ in range(ATTEMPTS):
            exported = await _attempt(path, source, progress)
            if exported is not None:
                return exported
            # No longer by keys that were still at hand when they were destroyed.
            await asyncio.sleep(LOOK_SECONDS)
    except OSError as error:
        raise Unavailable(f"{path} can't be written: {error.strerror}") from error
    raise Unavailable("accounts are erased faster than the log is written: try again later")


def _partial(path: Path) -> tuple[Path, Path]:
    """What the file and the directory are called until they are whole."""
    return path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.objects.partial")


async def _attempt(path: Path, source: Source, progress: Progress) -> Exported | None:
    """None if an account was erased meanwhile."""
    partial, directory = _partial(path)
    shutil.rmtree(directory, ignore_errors=True)
    partial.unlink(missing_ok=True)
    with _created(partial) as file:
        writing = _Writing(source, Writer(file), directory, progress)
        exported = await writing.run()
        file.flush()
        os.fsync(file.fileno())
    if exported is not None:
        if directory.exists():
            directory.rename(lines.objects_directory(path))
        partial.rename(path)
    return exported


def _created(path: Path) -> BufferedIOBase:
    """Nobody else's to read: all that was sealed is readable in it."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


class _Writing:
    """One attempt."""

    def __init__(self, source: Source, writer: Writer, directory: Path, progress: Progress) -> None:
        self._source = source
        self._connection = source.connection
        self._writer = writer
        self._directory = directory
        self._progress = progress
        self._objects = 0
        self._missing: list[str] = []
        self._skipped: set[int] = set()

    async def run(self) -> Exported | None:
        await database.set_timeout(self._connection, "statement_timeout", SNAPSHOT_TIMEOUT_MS)
        async with self._connection.transaction():
            await self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            head = await event_log.head(self._connection)
            erased = await self._last_erased()
            self._writer.write(
                lines.Header(version=lines.FORMAT_VERSION, epoch=head.epoch, head=head.position)
            )
            await self._write_beside()
        for after in range(0, head.position, PAGE_EVENTS):
            await self._write_events(after, min(after + PAGE_EVENTS, head.position), head.position)
        self._writer.end()
        if await self._last_erased() != erased:
            return None
        return Exported(head, self._writer.lines, self._objects, self._missing)

    async def _last_erased(self) -> int:
        row: Any = await (await self._connection.execute(LAST_ERASED)).fetchone()
        return int(row[0])

    # ------------------------------------------------------------------------ beside the log

    async def _write_beside(self) -> None:
        own = {"own": self._source.secret.blinding.name}
        await self._write_secrets(own)
        async for row in self._rows(ERASED, {}):
            user_id, purpose, erased_at, finished_at = row
            self._writer.write(
                lines.Erased(
                    user_id=user_id, purpose=purpose, erased_at=erased_at, finished_at=finished_at
                )
            )
        async for scope, value, holder, secret in self._rows(UNIQUE, own):
            self._writer.write(lines.Unique(scope=scope, value=value, holder=holder, secret=secret))
        async for scope, key, body_hash, secret, position, answer in self._rows(COMMANDS, own):
            self._writer.write(
                lines.RememberedCommand(
                    scope=scope,
                    key=key,
                    body_hash=body_hash,
                    secret=secret,
                    position=position,
                    answer=_raw(answer),
                )
            )
        await self._write_skips()

    async def _write_skips(self) -> None:
        async for row in self._rows(SKIPS, {"projections": list(NAMES)}):
            projection, position, type_name, reason, why, skipped_at = row
            self._skipped.add(position)
            self._writer.write(
                lines.Skipped(
                    projection=projection,
                    position=position,
                    type=type_name,
                    reason=reason,
                    why=why,
                    skipped_at=skipped_at,
                )
            )

    async def _write_secrets(self, own: dict[str, str]) -> None:
        known = await self._source.secret.former(self._connection)
        known[own["own"]] = self._source.secret.blinding
        for (name,) in await (await self._connection.execute(SECRETS, own)).fetchall():
            if name not in known:
                raise LogError(f"the secret {name}, which hashes were made with, is missing")
            self._writer.write(lines.FormerSecret(name=name, key=known[name].key))

    async def _rows(self, statement: LiteralString, values: dict[str, Any]) -> AsyncIterator[Any]:
        async with self._connection.cursor(name="export") as cursor:
            cursor.itersize = PAGE_ROWS
            await cursor.execute(statement, values)
            async for row in cursor:
                yield row

    # ------------------------------------------------------------------------------- the log

    async def _write_events(self, after: int, up_to: int, head: int) -> None:
        rows = await (await self._connection.execute(EVENTS, (after, up_to))).fetchall()
        if len(rows) != up_to - after:
            raise LogError(f"the log has {len(rows)} events in ({after}, {up_to}]")
        events = [codec.readable(row[4], row[5], row[6]) for row in rows]
        await self._source.keyring.load(codec.key_ids([one for one in events if one is not None]))
        logged = [self._logged(row, event) for row, event in zip(rows, events, strict=True)]
        objects = await self._objects_of(logged, head)
        for line in logged:
            for one in objects.get(line.position, ()):
                self._writer.write(one)
            self._writer.write(line)
        self._progress(up_to, head)

    def _opened(self, row: Any, event: Event | None) -> bytes | None:
        """The event's data; None if it can't be read and an operator had a read model do without.
        Else raises LogError: newer code may be able to."""
        position, type_name, data = row[0], row[4], row[6]
        told = f"event {position} ({type_name}) can't be read"
        if event is not None:
            try:
                return codec.opened_data(event, data.encode(), self._source.keyring)
            except InvalidTag:
                told = f"what is sealed at position {position} was tampered with"
        if position in self._skipped:
            return None
        # What is of a type unknown here, no read model here stands still at.
        skipped = ", or once it is skipped" if type_name in codec.TYPES else ""
        raise LogError(f"{told}: it is exported by code that can read it{skipped}")

    def _logged(self, row: Any, event: Event | None) -> LoggedEvent:
        position, event_id, stream, version, type_name, schema, data, metadata, at = row
        opened = self._opened(row, event)
        return LoggedEvent(
            position=position,
            event_id=event_id,
            stream=stream,
            stream_version=version,
            type=type_name,
            schema_version=schema,
            data=_raw(data if opened is None else opened.decode()),
            metadata=_raw(metadata),
            recorded_at=at,
            is_unread=opened is None,
        )

    # --------------------------------------------------------------------------- the objects

    async def _objects_of(self, page: list[LoggedEvent], head: int) -> dict[int, list[Object]]:
        """By the position of the event that names them."""
        things = [(line.position, thing) for line in page for thing in _things(line)]
        ended = await self._ended([thing for _, thing in things], head) if things else set()
        wanted = [
            (position, key)
            for number, (position, thing) in enumerate(things)
            if number not in ended
            for key in thing.keys
        ]
        found: dict[int, list[Object]] = {}
        for first in range(0, len(wanted), OBJECTS_AT_ONCE):
            some = wanted[first : first + OBJECTS_AT_ONCE]
            fetched = await asyncio.gather(*(self._fetch(key) for _, key in some))
            for (position, _), one in zip(some, fetched, strict=True):
                found.setdefault(position, []).extend(one)
        return found

    async def _ended(self, things: Sequence[_Thing], head: int) -> set[int]:
        endings = [(number, *end) for number, thing in enumerate(things) for end in thing.endings]
        numbers, streams, versions, types = (list(column) for column in zip(*endings, strict=True))
        arguments = {
            "things": numbers,
            "streams": streams,
            "versions": versions,
            "types": types,
            "head": head,
        }
        rows = await (await self._connection.execute(ENDED, arguments)).fetchall()
        return {number for (number,) in rows}

    async def _fetch(self, key: str) -> list[Object]:
        """None of them if the store does not have it."""
        file = self._directory / key
        self._directory.mkdir(mode=0o700, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        if not await self._source.objects.get(key, file):
            self._missing.append(key)
            return []
        self._objects += 1
        digest = await asyncio.to_thread(lines.digest_of, file)
        return [Object(key=key, size_bytes=file.stat().st_size, sha256=digest)]


def _things(line: LoggedEvent) -> Iterator[_Thing]:
    """Decoded again, with its fields readable."""
    if line.type not in (AttachmentUploaded.type, ProfileUpdated.type, GroupUpdated.type):
        return
    match event := line.decoded():
        case AttachmentUploaded():
            yield _attachment(event)
        case ProfileUpdated():
            ends = ("profile_updated", "account_deleted")
            yield from _avatar(event.avatar_url, event.user_id, line, ends)
        case GroupUpdated():
            ends = ("group_updated", "group_deleted")
            yield from _avatar(event.avatar_url, event.chat_id, line, ends)
        case _:
            pass


def _attachment(event: AttachmentUploaded) -> _Thing:
    endings = (
        _Ending(event.stream, 0, "attachment_removed"),
        _Ending(message_stream(event.message_id), 0, "message_deleted"),
        _Ending(user_stream(event.sender_id), 0, "account_deleted erasing"),
    )
    return _Thing([event.key(size) for size in SIZES], endings)


def _avatar(
    url: str | None, owner: Owner, line: LoggedEvent, types: Sequence[str]
) -> Iterator[_Thing]:
    key = avatar_key(url, owner)
    if key is not None:
        endings = [_Ending(line.stream, line.stream_version, name) for name in types]
        yield _Thing([key], endings)


def _raw(text: str) -> msgspec.Raw:
    """As it is written, on one line."""
    if "\n" in text:
        return msgspec.Raw(msgspec.json.encode(msgspec.json.decode(text)))
    return msgspec.Raw(text.encode())
