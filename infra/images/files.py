"""What an uploaded file is by its bytes: one of four kinds of image, whole, and nothing else.

Whatever stands after the image's end is dropped later, since every stored object is encoded anew:
cameras put films and second pictures there. A file that is another thing as well (an archive, a
document, a script, an image of another kind) is refused, though none of that would be stored:
who makes such a file means harm to whoever trusts its type.

Only bytes are looked at here: no decoder has seen the file yet.
"""

import re
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO

from domain.attachment import FileType
from infra.errors import ImageBroken, NotAnImage

PNG = b"\x89PNG\r\n\x1a\n"
SIGNATURES: tuple[tuple[re.Pattern[bytes], FileType], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(re.escape(PNG)), "image/png"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
)

# Where readers that guess look for what a file is.
HEAD_BYTES = 1024
DOCUMENT = re.compile(rb"%PDF-|<\?php|<!doctype|<html|<script|<svg|__HALT_COMPILER", re.IGNORECASE)
# A JPEG after a JPEG is the second picture of a camera's file.
APPENDED = re.compile(
    rb"Rar!\x1a\x07|7z\xbc\xaf\x27\x1c|GIF8[79]a|RIFF....WEBP|" + re.escape(PNG), re.DOTALL
)
# So short that they would turn up by chance anywhere but at the beginning.
NEXT = (b"PK\x03\x04", b"\x7fELF", b"MZ", b"BM", b"II*\0", b"MM\0*")
# What cameras put behind a JPEG, and nobody behind an image of another kind.
PICTURE = b"\xff\xd8\xff"
FILM, FILM_AT = b"ftyp", 4
TAR, TAR_AT = b"ustar", 257
ZIP_END = b"PK\x05\x06"
ZIP_TAIL_BYTES = 22 + 65_535

JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
JPEG_END = 0xD9
JPEG_ALONE = (0x01, 0xD8)
GIF_END, GIF_EXTENSION, GIF_IMAGE, GIF_PADDING = 0x3B, 0x21, 0x2C, 0x00


def check(data: bytes) -> FileType:
    """Raises NotAnImage or ImageBroken."""
    file_type = _type(data)
    try:
        end = ENDS[file_type](data)
    except (IndexError, struct.error):
        raise ImageBroken("the image is truncated") from None
    if end > len(data):
        raise ImageBroken("the image is truncated")
    is_from_camera = file_type == "image/jpeg"
    if _is_something_else(data, end) or (not is_from_camera and _has_more(data, end)):
        raise ImageBroken("the file is an image and something else at once")
    return file_type


def _type(data: bytes) -> FileType:
    for pattern, file_type in SIGNATURES:
        if pattern.match(data):
            return file_type
    raise NotAnImage("the file is no JPEG, PNG, GIF or WebP image")


def _is_something_else(data: bytes, end: int) -> bool:
    return bool(
        DOCUMENT.search(data, 0, HEAD_BYTES)
        or DOCUMENT.search(data, end)
        or APPENDED.search(data, end)
        or data.startswith(NEXT, end)
        or data.startswith(TAR, TAR_AT)
        or _is_archive(data)
    )


def _has_more(data: bytes, end: int) -> bool:
    return PICTURE in data[end:] or data.startswith(FILM, end + FILM_AT)


def _is_archive(data: bytes) -> bool:
    """A ZIP is read from its end: the whole of it may be inside of what the image holds."""
    if ZIP_END not in data[-ZIP_TAIL_BYTES:]:
        return False
    try:
        return bool(zipfile.ZipFile(BytesIO(data)).infolist())
    except Exception:  # noqa: BLE001 - whatever it raises: the four bytes are there by chance
        return False


def _end_of_jpeg(data: bytes) -> int:
    position = 2
    while found := JPEG_MARKER.search(data, position):
        position = found.end()
        marker = found[1][0]
        if marker == JPEG_END:
            return position
        if marker not in JPEG_ALONE:
            position += int(struct.unpack_from(">H", data, position)[0])
    raise IndexError


def _end_of_png(data: bytes) -> int:
    position, kind = len(PNG), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
    return position


def _end_of_gif(data: bytes) -> int:
    position = 13 + _gif_table_bytes(data[10])
    while (block := data[position]) != GIF_END:
        if block == GIF_PADDING:
            position += 1
        elif block == GIF_EXTENSION:
            position = _after_blocks(data, position + 2)
        elif block == GIF_IMAGE:
            position += 11 + _gif_table_bytes(data[position + 9])
            position = _after_blocks(data, position)
        else:
            raise ImageBroken("the image is corrupt")
    return position + 1


def _gif_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(data: bytes, position: int) -> int:
    while length := data[position]:
        position += length + 1
    return position + 1


def _end_of_webp(data: bytes) -> int:
    return 8 + int(struct.unpack_from("<I", data, 4)[0])


ENDS: dict[FileType, Callable[[bytes], int]] = {
    "image/jpeg": _end_of_jpeg,
    "image/png": _end_of_png,
    "image/gif": _end_of_gif,
    "image/webp": _end_of_webp,
}
