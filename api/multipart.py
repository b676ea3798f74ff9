"""A form with a file (multipart/form-data), read while it arrives.

The file goes to the spool piece by piece and is gone when the form is done with; nothing is in
memory whole. Every part has a limit, and so have the body and the time that it may take. What
the client says of the file's type is not looked at.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from api.http import Inbound
from api.problems import Malformed, TooLarge, UnsupportedMedia
from domain.refusals import Invalid
from infra.images.jobs import MAX_BYTES
from infra.spool import scratch

FILE = "file"
MAX_FIELD_BYTES = 1_024
WRITTEN_AT_ONCE_BYTES = 256 * 1024
MAX_HEADER_BYTES = 4_096
# Boundaries, headers and fields beside the file.
MAX_BESIDE_BYTES = 64 * 1024
MAX_NAME_CHARACTERS = 255
READ_SECONDS = 120.0


class Form(NamedTuple):
    """`file_name`: as the client calls it, without directories; None if it does not say."""

    file: Path
    file_name: str | None
    fields: Mapping[str, str]


@asynccontextmanager
async def read_form(
    inbound: Inbound, spool: Path, *, fields: Collection[str]
) -> AsyncIterator[Form]:
    """With exactly these fields beside the file. Raises UnsupportedMedia, TooLarge, Malformed or
    Invalid."""
    parser = PushMultipartParser(
        _boundary(inbound),
        max_header_size=MAX_HEADER_BYTES,
        max_segment_count=len(fields) + 2,
    )
    _check_length(inbound)
    async with scratch(spool) as directory:
        parts = _Parts(directory / FILE, fields)
        await _read(inbound, parser, parts)
        yield parts.form()


async def _read(inbound: Inbound, parser: PushMultipartParser, parts: "_Parts") -> None:
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for chunk in inbound.chunks(MAX_BYTES + MAX_BESIDE_BYTES):
                for event in parser.parse(chunk):
                    parts.take(event)
                if parts.unwritten_bytes >= WRITTEN_AT_ONCE_BYTES:
                    await asyncio.to_thread(parts.write)
            parser.close()
            await asyncio.to_thread(parts.write)
    except MultipartError:
        # Its words may hold what was sent, and how it was looked at.
        raise Malformed("the form can't be read: it is no whole multipart/form-data") from None
    except TimeoutError:
        raise Malformed(f"the form did not arrive within {READ_SECONDS:.0f} s") from None


def _boundary(inbound: Inbound) -> str:
    given = (inbound.header(b"content-type") or b"").decode("latin-1")
    media_type, options = parse_options_header(given)
    if media_type != "multipart/form-data":
        raise UnsupportedMedia("the body has to be multipart/form-data")
    boundary: str = options.get("boundary", "")
    if not boundary or not boundary.isascii():
        raise Malformed("the content type names no boundary")
    return boundary


def _check_length(inbound: Inbound) -> None:
    """Before any of it is read, where the client says how much it will be."""
    length = inbound.header(b"content-length")
    if length is not None and length.isdigit() and int(length) > MAX_BYTES + MAX_BESIDE_BYTES:
        raise _too_large()


def _too_large() -> TooLarge:
    return TooLarge(f"a file may have at most {MAX_BYTES} bytes")


class _Parts:
    """What has arrived: the file on disk, the fields here."""

    def __init__(self, path: Path, fields: Collection[str]) -> None:
        self._path = path
        self._wanted = {FILE, *fields}
        self._unwritten = bytearray()
        self._file_name: str | None = None
        self._sizes: dict[str, int] = {}
        self._fields: dict[str, bytes] = {}
        self._part = ""

    @property
    def unwritten_bytes(self) -> int:
        return len(self._unwritten)

    def write(self) -> None:
        """To disk, in a thread: nothing is taken meanwhile."""
        with self._path.open("ab") as file:
            file.write(self._unwritten)
        self._unwritten.clear()

    def take(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        if isinstance(event, MultipartSegment):
            self._begin(event)
        elif event is not None:
            self._add(bytes(event))

    def form(self) -> Form:
        """Raises Invalid."""
        for name in sorted(self._wanted - set(self._sizes)):
            raise Invalid("the form lacks this part", field=name)
        return Form(
            self._path,
            self._file_name,
            {name: _text(name, value) for name, value in self._fields.items()},
        )

    def _begin(self, segment: MultipartSegment) -> None:
        name = self._part = segment.name or ""
        if name not in self._wanted:
            raise Invalid("there is no such part in this form", field=name[:MAX_NAME_CHARACTERS])
        if name in self._sizes:
            raise Invalid("this part is there twice", field=name)
        self._sizes[name] = 0
        if name == FILE:
            self._file_name = _file_name(segment.filename)
        else:
            self._fields[name] = b""

    def _add(self, data: bytes) -> None:
        self._sizes[self._part] += len(data)
        if self._part == FILE:
            if self._sizes[FILE] > MAX_BYTES:
                raise _too_large()
            self._unwritten += data
        elif self._sizes[self._part] > MAX_FIELD_BYTES:
            raise Invalid(f"more than {MAX_FIELD_BYTES} bytes", field=self._part)
        else:
            self._fields[self._part] += data


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Invalid("this is not UTF-8", field=name) from None


def _file_name(given: str | None) -> str | None:
    """The last part of whatever path it is; what can't be printed is left out."""
    if given is None:
        return None
    if "\0" in given:
        raise Invalid("a text may not hold the NUL character", field=FILE)
    last = given.replace("\\", "/").rpartition("/")[2]
    shown = "".join(one for one in last if one.isprintable()).strip()
    return shown[:MAX_NAME_CHARACTERS] or None
