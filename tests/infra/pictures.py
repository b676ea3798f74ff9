"""Images made for the tests, and what a stored one is made of, down to its chunks.

`quarters` has a colour of its own in each corner, so that whatever turns, mirrors, crops or
recolours it is seen by looking at four points.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import PIL.Image
from PIL import ImageCms, ImageSequence

Picture = PIL.Image.Image
Colour = tuple[int, ...]

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 40), (40, 50, 210), (250, 250, 250)
# Top left, top right, bottom left, bottom right.
CORNERS: tuple[Colour, ...] = (RED, GREEN, BLUE, WHITE)
GREYS = (20, 90, 170, 250)
SECRET = b"52.5200N 13.4050E"
ORIENTATION = 0x0112
PNG = b"\x89PNG\r\n\x1a\n"


def quarters(
    width: int, height: int, colours: Sequence[Any] = CORNERS, mode: str = "RGB"
) -> Picture:
    image = PIL.Image.new(mode, (width, height), colours[0])
    middle, centre = width // 2, height // 2
    for shade, place in zip(colours[1:], ((middle, 0), (0, centre), (middle, centre)), strict=True):
        # Never a colour by itself: Pillow pastes those wrongly into 16 bits.
        quarter = PIL.Image.new(mode, (width - middle, height - centre), shade)
        image.paste(quarter, place)
    return image


def corners(image: Picture, mode: str = "RGB") -> list[Colour]:
    """In the middle of each quarter."""
    seen = image.convert(mode)
    width, height = seen.size
    points = [(x, y) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return [colour(seen, point) for point in points]


def colour(image: Picture, point: tuple[int, int]) -> Colour:
    value = image.getpixel(point)
    return tuple(map(int, value)) if isinstance(value, tuple) else (int(value or 0),)


def is_near(found: Sequence[Colour], expected: Sequence[Colour], by: int = 12) -> bool:
    return all(
        len(one) == len(other) and all(abs(a - b) <= by for a, b in zip(one, other, strict=True))
        for one, other in zip(found, expected, strict=True)
    )


def encoded(image: Picture, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def film(
    kind: str, frames: Sequence[Picture], durations_ms: Sequence[int], **options: Any
) -> bytes:
    return encoded(
        frames[0],
        kind,
        save_all=True,
        append_images=frames[1:],
        duration=list(durations_ms),
        **options,
    )


def opened(data: bytes) -> Picture:
    return PIL.Image.open(BytesIO(data))


class Shown(NamedTuple):
    frames: list[Picture]
    durations_ms: list[int]


def shown(data: bytes) -> Shown:
    """A film as a viewer sees it: whole frames."""
    frames, durations_ms = [], []
    for frame in ImageSequence.Iterator(opened(data)):
        frame.load()
        frames.append(frame.convert("RGBA"))
        durations_ms.append(int(frame.info.get("duration", 0)))
    return Shown(frames, durations_ms)


def exif(orientation: int = 1) -> bytes:
    """With a place, a camera and a comment."""
    tags = PIL.Image.Exif()
    tags[ORIENTATION] = orientation
    tags[0x010F] = SECRET.decode()
    tags.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 29: SECRET.decode()})
    tags.get_ifd(0x8769)[0x9286] = SECRET
    return tags.tobytes()


XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + SECRET + b"</x:xmpmeta>"


# Files byte by byte


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    size: tuple[int, int], depth: int, colour_type: int, rows: bytes, chunks: bytes = b""
) -> bytes:
    """`rows` with a filter byte before each; `chunks` stand before the pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return PNG + chunk(b"IHDR", header) + chunks + pixels + chunk(b"IEND", b"")


def wide_rows(image: Picture) -> bytes:
    """Of an 8-bit image, as 16 bits a channel."""
    bands, (width, height) = len(image.getbands()), image.size
    line = width * bands
    raw = image.tobytes()
    return b"".join(
        b"\0" + b"".join(bytes((byte, 77)) for byte in raw[row * line : (row + 1) * line])
        for row in range(height)
    )


def with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    """After the beginning of a JPEG."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + jpeg[2:]


def without_segment(jpeg: bytes, marker: int) -> bytes:
    at = jpeg.index(bytes((0xFF, marker)))
    (length,) = struct.unpack_from(">H", jpeg, at + 2)
    return jpeg[:at] + jpeg[at + 2 + length :]


def profile_that_swaps_red_and_green() -> bytes:
    """sRGB's own profile with two of its colours exchanged: nobody can miss whether it is used."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    described = swapped.replace("sRGB".encode("utf-16-be"), "Swap".encode("utf-16-be"))
    return described.replace(b"sRGB", b"Swap")


def grey_profile(gamma: float) -> bytes:
    """A minimal ICC profile of version 2 for grey with a gamma."""
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))
    words = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"grey\0" + bytes(78)
    words += bytes(-len(words) % 4)
    parts, table, at = [white, curve, words], b"", 128 + 4 + 3 * 12
    for name, part in zip((b"wtpt", b"kTRC", b"desc"), parts, strict=True):
        table += name + struct.pack(">II", at, len(part))
        at += len(part)
    header = struct.pack(">I4sI4s4s4s", at, b"none", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += struct.pack(">iii", 63190, 65536, 54061) + bytes(48)
    return header + struct.pack(">I", 3) + table + b"".join(parts)


# What a stored file holds


def parts(data: bytes) -> set[str]:
    """The names of all its chunks, segments or blocks; an assertion fails where any byte is not
    in one."""
    if data.startswith(PNG):
        return set(_png_parts(data))
    if data.startswith(b"RIFF"):
        return set(_webp_parts(data))
    return set(_gif_parts(data) if data.startswith(b"GIF") else _jpeg_parts(data))


PLAIN_PARTS = {
    *("IHDR", "PLTE", "tRNS", "IDAT", "IEND", "acTL", "fcTL", "fdAT"),
    *("VP8 ", "VP8L", "VP8X", "ALPH", "ANIM", "ANMF"),
    *("image", "control", "NETSCAPE2.0"),
    *("JFIF", "c0", "c2", "c4", "da", "db"),
}


def _png_parts(data: bytes) -> Iterator[str]:
    at = len(PNG)
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        yield kind.decode()
    assert at == len(data)
    assert data[-8:-4] == b"IEND"


def _webp_parts(data: bytes) -> Iterator[str]:
    at = 12
    while at < len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        at += 8 + length + length % 2
        yield kind.decode()
    assert at == len(data) == 8 + struct.unpack_from("<I", data, 4)[0]


def _gif_parts(data: bytes) -> Iterator[str]:
    at = 13 + _table(data[10])
    while data[at] != 0x3B:
        if data[at] == 0x2C:
            yield "image"
            at += 11 + _table(data[at + 9])
        else:
            assert data[at] == 0x21
            is_named = data[at + 1] == 0xFF
            yield data[at + 3 : at + 14].decode() if is_named else _gif_name(data[at + 1])
            at += 2
        while length := data[at]:
            at += 1 + length
        at += 1
    assert at == len(data) - 1


def _gif_name(label: int) -> str:
    return "control" if label == 0xF9 else f"extension {label:x}"


def _table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _jpeg_parts(data: bytes) -> Iterator[str]:
    at = 2
    while data[at + 1] != 0xD9:
        marker = data[at + 1]
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield data[at + 4 : at + 8].decode() if marker == 0xE0 else f"{marker:x}"
        at += 2 + length
        while marker == 0xDA and (data[at] != 0xFF or data[at + 1] == 0):
            at += 1
    assert at + 2 == len(data)
