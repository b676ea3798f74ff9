"""GIF files, still or moving, put together from frames that Pillow encodes one by one.

Pillow's own films are not always what they should be: a frame like the ground that it is drawn
on becomes a second file inside of the first. Here a film without clear pixels is drawn over
itself, each frame only where it changes; one with them is drawn anew each time. So a frame has
256 colours for what changes, not for all there is; where they are not enough, the nearest are
taken. A pixel of a GIF is seen whole or not at all.
"""

import struct
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import pairwise

import PIL.Image
from PIL import ImageChops
from PIL.Image import Quantize

COLOURS = 256
OPAQUE_FROM = 128
MAX_HUNDREDTHS = 2**16 - 1
EVERYTHING_STAYS, NOTHING_STAYS = 1, 2

Picture = PIL.Image.Image
Box = tuple[int, int, int, int]


def encoded(frames: Sequence[Picture], durations_ms: Sequence[int], loop: int | None) -> bytes:
    """Frames of one size; without `loop` it plays once, with 0 for ever."""
    screen = struct.pack("<HHBBB", *frames[0].size, 0x70, 0, 0)
    looping = b"" if loop is None else b"!\xff\x0bNETSCAPE2.0\x03\x01%b\0" % struct.pack("<H", loop)
    blocks = _over(frames) if all(map(_is_opaque, frames)) else _anew(frames)
    drawn = [block.drawn(duration) for block, duration in zip(blocks, durations_ms, strict=True)]
    return b"".join([b"GIF89a", screen, looping, *drawn, b";"])


class _Block:
    """What is drawn of one frame, where, and what becomes of it after its time."""

    def __init__(self, picture: Picture, box: Box, disposal: int) -> None:
        # Without a clear colour of its own, some viewers take the ground's for what goes.
        self._picture = _paletted(picture.crop(box), has_clear=disposal == NOTHING_STAYS)
        self._place = (*box[:2], *self._picture.size)
        self._disposal = disposal

    def drawn(self, duration_ms: int) -> bytes:
        file = BytesIO()
        # Else Pillow numbers the colours anew, and the clear one with them.
        self._picture.save(file, "GIF", optimize=False, interlace=0)
        table, pixels = _table_and_pixels(file.getvalue())
        size = (len(table) // 3).bit_length() - 2
        descriptor = struct.pack("<BHHHHB", 0x2C, *self._place, 0x80 | size)
        return self._control(duration_ms) + descriptor + table + pixels

    def _control(self, duration_ms: int) -> bytes:
        clear = self._picture.info.get("transparency")
        flags = self._disposal << 2 | (clear is not None)
        hundredths = min(duration_ms // 10, MAX_HUNDREDTHS)
        return b"!\xf9\x04" + struct.pack("<BHBB", flags, hundredths, clear or 0, 0)


def _over(frames: Sequence[Picture]) -> Iterator[_Block]:
    whole: Box = (0, 0, *frames[0].size)
    yield _Block(frames[0], whole, EVERYTHING_STAYS)
    for before, frame in pairwise(frames):
        bands = ImageChops.difference(before, frame).convert("RGB").split()
        changed = ImageChops.lighter(ImageChops.lighter(*bands[:2]), bands[2])
        picture = frame.copy()
        picture.putalpha(changed.point(lambda difference: 255 * (difference > 0)))
        yield _Block(picture, changed.getbbox() or (0, 0, 1, 1), EVERYTHING_STAYS)


def _anew(frames: Sequence[Picture]) -> Iterator[_Block]:
    """The first over the whole: some viewers take the film's size from there."""
    whole: Box = (0, 0, *frames[0].size)
    yield _Block(frames[0], whole, NOTHING_STAYS)
    for frame in frames[1:]:
        seen = frame.convert("RGBA").getchannel("A").getbbox()
        yield _Block(frame, seen or (0, 0, 1, 1), NOTHING_STAYS)


def _is_opaque(picture: Picture) -> bool:
    return not picture.has_transparency_data or _clear(picture).getbbox() is None


def _clear(picture: Picture) -> Picture:
    alpha = picture.convert("RGBA").getchannel("A")
    return alpha.point(lambda value: 255 * (value < OPAQUE_FROM))


def _paletted(picture: Picture, *, has_clear: bool) -> Picture:
    """Exact where the colours are few enough."""
    if picture.mode == "L":
        return picture
    colours = picture.convert("RGB")
    if not has_clear and _is_opaque(picture):
        return colours.quantize(COLOURS, Quantize.MEDIANCUT)
    clear, everywhere = _clear(picture), (0, 0, *picture.size)
    # What is not seen takes no place in the palette from what is.
    colours.paste(_any_seen(colours, clear), everywhere, clear)
    paletted = colours.quantize(COLOURS - 1, Quantize.MEDIANCUT)
    palette = paletted.getpalette(None) or []
    paletted.putpalette([*palette, 0, 0, 0])
    paletted.info["transparency"] = len(palette) // 3
    paletted.paste(len(palette) // 3, everywhere, clear)
    return paletted


def _any_seen(colours: Picture, clear: Picture) -> tuple[int, ...]:
    seen = clear.point(lambda value: 255 - value)
    left, top, *_ = seen.getbbox() or (0, 0)
    row = seen.crop((left, top, seen.width, top + 1))
    first, *_ = row.getbbox() or (0, 0)
    colour = colours.getpixel((left + first, top))
    assert isinstance(colour, tuple)
    return tuple(map(int, colour))


def _table_and_pixels(still: bytes) -> tuple[bytes, bytes]:
    """The colours and the compressed pixels of a file with one frame, as Pillow writes it."""
    assert still[10] & 0x80, "without a table of colours"
    at = 13 + (3 << (still[10] & 7) + 1)
    table = still[13:at]
    while still[at] != 0x2C:  # an extension: its label, then blocks each with its length
        at += 2
        while still[at]:
            at += still[at] + 1
        at += 1
    return table, still[at + 10 : -1]
