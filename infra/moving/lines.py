"""The file of an export: JSON lines, each an object whose `line` says what it is.

In this order: `export` (format version, epoch, head); `secret`, `erased`, `unique`, `command`,
`skipped` lines for what stands beside the log, the last by projection and position; `event` lines,
positions from 1 without a gap, the columns of event_log with sealed fields readable (null where
there is no key any more), before which come `object` lines for the files that they name; `end`.
Code of before `skipped` refuses a file that has one. Every line ends with `"digest"`: the first
32 hex digits of SHA-256 of the digest before (nothing at first) and the line without `digest`. So
a digest stands for the whole file up to its line.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from io import BufferedIOBase
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from domain.attachment import EXTENSIONS, FileType
from domain.event import Event, KeyPurpose
from domain.ids import UUID_TEXT
from infra import codec
from infra.errors import BadExport, LogError
from infra.skips import MAX_SKIPS
from projections import NAMES

FORMAT_VERSION = 1
# Some times as much as the largest event takes.
MAX_LINE_BYTES = 16 * 1024 * 1024
# Some times as much as the largest rendition takes.
MAX_OBJECT_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
DIGEST_CHARACTERS = 32
SUFFIX = re.compile(rb',"digest":"([0-9a-f]{32})"}\n')
SUFFIX_BYTES = len(b',"digest":""}\n') + DIGEST_CHARACTERS

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
# Objects are files beside the export by these names: nothing else may be one.
_KEY = re.compile(
    rf"(?:avatars/{_UUID}|{_UUID}/{_UUID})/{_UUID}_(?:original|medium|thumbnail)"
    rf"[.]({'|'.join(EXTENSIONS.values())})"
)
_TYPES: dict[str, FileType] = {extension: kind for kind, extension in EXTENSIONS.items()}

_Id = Annotated[str, UUID_TEXT]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]
_Whole = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Small = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class _Line(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="line", forbid_unknown_fields=True
):
    pass


class Header(_Line, frozen=True, kw_only=True, tag="export"):
    """`head` is the last position, `epoch` the log's."""

    version: int
    epoch: _Small
    head: _Whole


class FormerSecret(_Line, frozen=True, kw_only=True, tag="secret"):
    """The key (base64) that hashes in the file were made with; `name` is a digest of it."""

    name: str
    key: bytes


class Erased(_Line, frozen=True, kw_only=True, tag="erased"):
    user_id: _Id
    purpose: KeyPurpose
    erased_at: _Time
    finished_at: _Time | None


class Unique(_Line, frozen=True, kw_only=True, tag="unique"):
    """A value that a stream holds; hashed with the key called `secret`, if that is one."""

    scope: str
    value: str
    holder: str
    secret: str | None


class RememberedCommand(_Line, frozen=True, kw_only=True, tag="command"):
    """An idempotency key, what was sent under it (as a hash), and what was answered."""

    scope: str
    key: str
    body_hash: str
    secret: str
    position: _Whole
    answer: msgspec.Raw


class Skipped(_Line, frozen=True, kw_only=True, tag="skipped"):
    """An event that a projection does without: `reason` is the projection's, `why` the operator's."""

    projection: str
    position: _Whole
    type: str
    reason: str
    why: str
    skipped_at: _Time


class Object(_Line, frozen=True, kw_only=True, tag="object"):
    key: str
    size_bytes: _Whole
    sha256: str

    @property
    def file_type(self) -> FileType:
        return _TYPES[self.key.rpartition(".")[2]]


class LoggedEvent(_Line, frozen=True, kw_only=True, tag="event", omit_defaults=True):
    """`data` is readable, but where `is_unread`: what nothing could read, and a projection skips, is
    as it stood in the log."""

    position: _Whole
    event_id: _Id
    stream: str
    stream_version: _Small
    type: str
    schema_version: int
    data: msgspec.Raw
    metadata: msgspec.Raw
    recorded_at: _Time
    is_unread: bool = False

    def decoded(self) -> Event | None:
        """None if it is unread. Raises LogError."""
        if self.is_unread:
            return None
        return codec.decode(self.type, self.schema_version, bytes(self.data))


class End(_Line, frozen=True, kw_only=True, tag="end"):
    """`lines` counts this one too."""

    lines: int


Beside = FormerSecret | Erased | Unique | RememberedCommand | Skipped
Line = Header | Beside | Object | LoggedEvent | End

# What may come after what; an object and its event take turns.
_ORDER: dict[type, int] = {
    Header: 0,
    FormerSecret: 1,
    Erased: 2,
    Unique: 3,
    RememberedCommand: 4,
    Skipped: 5,
    Object: 6,
    LoggedEvent: 6,
    End: 7,
}


class Numbered(NamedTuple):
    """A line with its number, its digest and its size."""

    number: int
    digest: str
    size_bytes: int
    line: Line


class Writer:
    """Writes lines one after the other."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self._digest = ""
        self.lines = 0

    def write(self, line: Line) -> None:
        body = msgspec.json.encode(line)
        if len(body) + SUFFIX_BYTES > MAX_LINE_BYTES:
            raise LogError(f"a line for an export has {len(body)} bytes: {body[:100]!r}…")
        self._digest = chained(self._digest, body)
        self._file.write(body[:-1] + b',"digest":"%s"}\n' % self._digest.encode())
        self.lines += 1

    def end(self) -> None:
        self.write(End(lines=self.lines + 1))


def read(path: Path) -> Iterator[Numbered]:
    """The lines, checked one by one and in their order. Raises BadExport, which names the line."""
    number, digest, check = 0, "", _Order()
    with _opened(path) as file:
        while text := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            try:
                digest, line = _read(digest, text)
                check(number, line)
            except _Wrong as error:
                raise BadExport(f"line {number} of {path.name}: {error}") from error
            yield Numbered(number, digest, len(text), line)
    if not check.is_at_end:
        raise BadExport(f"line {number + 1} of {path.name} is missing: the file was cut")


def chained(digest: str, body: bytes) -> str:
    return hashlib.sha256(digest.encode() + body).hexdigest()[:DIGEST_CHARACTERS]


def digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def objects_directory(path: Path) -> Path:
    """Where the files are that the export's `object` lines name."""
    return path.with_name(path.name + ".objects")


class _Wrong(Exception):
    """What is wrong with a line."""


def _opened(path: Path) -> BufferedIOBase:
    try:
        return path.open("rb")
    except OSError as error:
        raise BadExport(f"{path} can't be read: {error.strerror}") from error


def _read(digest_before: str, text: bytes) -> tuple[str, Line]:
    if not text.endswith(b"\n"):
        raise _Wrong("it is cut" if len(text) <= MAX_LINE_BYTES else "it is too long")
    suffix = SUFFIX.fullmatch(text, max(0, len(text) - SUFFIX_BYTES))
    if suffix is None:
        raise _Wrong("it does not end with a digest: this is no line of an export")
    body = text[: suffix.start()] + b"}"
    digest = chained(digest_before, body)
    if digest != suffix[1].decode():
        raise _Wrong("its digest is another one: it was altered, or one before it is missing")
    if not digest_before:
        _check_version(body)
    return digest, _decode(body)


class _Version(msgspec.Struct, frozen=True):
    line: Literal["export"]
    version: int


def _check_version(body: bytes) -> None:
    """A later one may have anything else in it."""
    try:
        version = msgspec.json.decode(body, type=_Version).version
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _Wrong("this is no export") from error
    if version != FORMAT_VERSION:
        raise _Wrong(f"the export has format version {version}, known is {FORMAT_VERSION}")


_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def _decode(body: bytes) -> Line:
    try:
        line = _decoder.decode(body)
        # PostgreSQL's text can't hold it. Written otherwise it would not be JSON.
        if b"\\u0000" in body and _has_nul(msgspec.json.decode(body)):
            raise _Wrong("there is a NUL character in it")
        _check_parts(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, LogError, RecursionError) as error:
        raise _Wrong(str(error)) from error
    return line


def _has_nul(value: object) -> bool:
    match value:
        case str():
            return "\0" in value
        case list():
            return any(map(_has_nul, value))
        case dict():
            return any(_has_nul(part) for pair in value.items() for part in pair)
        case _:
            return False


def _check_parts(line: Line) -> None:
    match line:
        case Object():
            if not _KEY.fullmatch(line.key):
                raise _Wrong(f"{line.key!r} is no object's key")
        case Skipped():
            if line.projection not in NAMES:
                raise _Wrong(f"this code knows no projection {line.projection!r}")
        case LoggedEvent():
            event = line.decoded()
            stream = line.stream if event is None else event.stream
            if line.stream != stream or not re.fullmatch(rf"[a-z]+(?:-{_UUID}){{1,2}}", stream):
                raise _Wrong(f"an event of {stream} can't be in {line.stream}")
        case _:
            pass


class _Order:
    """That each line may stand where it stands."""

    def __init__(self) -> None:
        self._reached = -1
        self._position = 0
        self._head = 0
        self._skips: Counter[str] = Counter()
        self._last_skip = ("", 0)
        self._skipped_types: dict[int, str] = {}

    @property
    def is_at_end(self) -> bool:
        return self._reached == _ORDER[End]

    def __call__(self, number: int, line: Line) -> None:
        rank = _ORDER[type(line)]
        if rank < self._reached or self.is_at_end or (number == 1) != isinstance(line, Header):
            raise _Wrong(f"{type(line).__struct_config__.tag} can't stand here")
        self._reached = rank
        match line:
            case Header():
                self._head = line.head
            case Skipped():
                self._check_skip(line)
            case LoggedEvent():
                self._check_event(line)
            case End():
                self._check_end(number, line)
            case _:
                pass

    def _check_skip(self, line: Skipped) -> None:
        skip, at = (line.projection, line.position), f"{line.projection} skips {line.position}"
        if not 1 <= line.position <= self._head:
            raise _Wrong(f"{at} but the log ends at {self._head}")
        if skip <= self._last_skip:
            raise _Wrong(f"{at} a second time, or after {' '.join(map(str, self._last_skip))}")
        self._skips[line.projection] += 1
        if self._skips[line.projection] > MAX_SKIPS:
            raise _Wrong(f"{line.projection} skips more than {MAX_SKIPS} events")
        self._last_skip = skip
        if self._skipped_types.setdefault(line.position, line.type) != line.type:
            raise _Wrong(f"{at} as another type than a projection before")

    def _check_event(self, line: LoggedEvent) -> None:
        self._position += 1
        if line.position != self._position:
            raise _Wrong(f"position {line.position} where {self._position} was to come")
        skipped = self._skipped_types.get(line.position, line.type)
        if skipped != line.type:
            raise _Wrong(f"{line.type} at {line.position}, where {skipped} was skipped")
        if line.is_unread and line.position not in self._skipped_types:
            raise _Wrong(f"{line.position} is unread, but nothing skips it")

    def _check_end(self, number: int, line: End) -> None:
        if line.lines != number or self._position != self._head:
            raise _Wrong(f"the end of {line.lines} lines up to position {self._head} is not here")
