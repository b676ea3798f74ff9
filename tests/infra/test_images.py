"""Every kind of image comes out right: size, colours, orientation, movement, and no metadata.

All go through a real worker. `Studio.make` checks of every file that it is of the type it is
said to be, of the right size, and made of nothing but pixels, down to its chunks.
"""

import random
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageChops, ImageStat
from PIL.PngImagePlugin import PngInfo

from domain.attachment import SIZES, Size
from infra.errors import ImageBroken, ImageRefused, ImageTooLarge, NotAnImage
from infra.images import gif_films
from infra.images.jobs import MAX_BYTES, Limits
from tests.infra import pictures
from tests.infra.pictures import (
    BLUE,
    CORNERS,
    GREEN,
    GREYS,
    RED,
    SECRET,
    WHITE,
    XMP,
    Picture,
    corners,
    encoded,
    film,
    is_near,
    opened,
    quarters,
    shown,
)
from tests.infra.rendering import Studio, studio, workers

KINDS = ("JPEG", "PNG", "GIF", "WEBP")
MOVING = ("GIF", "WEBP", "PNG")
SOME_BYTES = 400 * 1024 * 1024


@pytest.fixture(scope="module")
async def images(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Studio]:
    async with studio(tmp_path_factory.mktemp("images")) as one:
        yield one


def grey(values: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [(value, value, value) for value in values]


# The three renditions


@pytest.mark.parametrize("kind", KINDS)
async def test_a_picture_has_three_renditions_of_its_kind(images: Studio, kind: str) -> None:
    made = await images.make(encoded(quarters(1200, 900), kind, quality=95))
    assert made.image.file_type == f"image/{kind.lower()}"
    assert made.picture("original").size == (1200, 900)
    assert made.picture("medium").size == (800, 600)
    for size in made.files:
        assert is_near(corners(made.picture(size)), CORNERS), size


async def test_a_jpeg_is_progressive_and_of_the_quality_named(images: Studio) -> None:
    picture = quarters(1000, 1000)
    made = await images.make(encoded(picture, "JPEG", quality=98))
    qualities: dict[Size, int] = {"original": 85, "medium": 80, "thumbnail": 75}
    for size, quality in qualities.items():
        stored: Any = made.picture(size)
        expected: Any = opened(encoded(picture, "JPEG", quality=quality))
        assert stored.quantization == expected.quantization
        assert stored.info["progressive"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "medium"),
    [
        ((1, 1), (1, 1)),
        ((1, 2), (1, 2)),
        ((300, 300), (300, 300)),
        ((800, 1), (800, 1)),
        ((801, 2), (800, 2)),
        ((10_000, 1), (800, 1)),
        ((3, 12_000), (1, 800)),
    ],
)
async def test_tiny_and_extreme_pictures_keep_their_shape(
    images: Studio, kind: str, size: tuple[int, int], medium: tuple[int, int]
) -> None:
    made = await images.make(encoded(PIL.Image.new("RGB", size, GREEN), kind))
    assert made.picture("original").size == size
    assert made.picture("medium").size == medium
    assert is_near(corners(made.picture("thumbnail")), [GREEN] * 4)


async def test_a_thumbnail_is_the_middle(images: Studio) -> None:
    wide = PIL.Image.new("RGB", (900, 300), RED)
    wide.paste(quarters(300, 300), (300, 0))
    made = await images.make(encoded(wide, "PNG"))
    assert corners(made.picture("thumbnail")) == list(CORNERS)


async def test_only_what_is_asked_for_is_made_and_it_is_what_is_told_of(images: Studio) -> None:
    made = await images.make(encoded(quarters(900, 500), "PNG"), ["thumbnail"])
    assert (made.image.width, made.image.height) == (300, 300)


# Colours


async def test_png_is_lossless(images: Studio) -> None:
    noise = PIL.Image.frombytes("RGBA", (90, 70), random.Random(4).randbytes(90 * 70 * 4))
    made = await images.make(encoded(noise, "PNG"))
    assert made.picture().convert("RGBA").tobytes() == noise.tobytes()
    assert made.picture("medium").convert("RGBA").tobytes() == noise.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
async def test_transparency_stays(images: Studio, kind: str) -> None:
    colours = [(*RED, 255), (*GREEN, 255), (*BLUE, 255), (0, 0, 0, 0)]
    made = await images.make(encoded(quarters(900, 900, colours, "RGBA"), kind))
    for size in made.files:
        *seen, clear = corners(made.picture(size), "RGBA")
        assert is_near(seen, colours[:3])
        assert clear[3] == 0


async def test_half_transparent_edges_have_no_dark_rim(images: Studio) -> None:
    picture = PIL.Image.new("RGBA", (1600, 1600), (0, 0, 0, 0))
    picture.paste((255, 255, 255, 255), (801, 0, 1600, 1600))
    made = await images.make(encoded(picture, "PNG"), ["original", "medium"])
    medium = made.picture("medium")
    edge = [pictures.colour(medium, (x, 400)) for x in range(390, 410)]
    assert all(min(colour[:3]) > 250 for colour in edge if colour[3] > 20), edge


@pytest.mark.parametrize("transparency", [None, 3, bytes((255, 255, 128, 0))])
async def test_a_palette_stays_one(images: Studio, transparency: Any) -> None:
    picture = quarters(900, 900, (0, 1, 2, 3), "P")
    picture.putpalette([value for colour in CORNERS for value in colour])
    options = {} if transparency is None else {"transparency": transparency}
    file = encoded(picture, "PNG", **options)
    made = await images.make(file)
    assert made.picture().mode == "P"
    expected = corners(opened(file), "RGBA")
    for size in made.files:
        found = corners(made.picture(size), "RGBA")
        assert is_near([one for one in found if one[3]], [one for one in expected if one[3]])
        assert [one[3] for one in found] == [one[3] for one in expected]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["1", "L"])
async def test_greys_stay_grey(images: Studio, kind: str, mode: str) -> None:
    values = (0, 255, 255, 0) if mode == "1" else GREYS
    made = await images.make(encoded(quarters(900, 900, values, mode), kind))
    for size in made.files:
        assert is_near(corners(made.picture(size)), grey(values))
    if kind == "JPEG":
        assert made.picture().mode == "L"


async def test_grey_with_alpha(images: Studio) -> None:
    values = ((20, 255), (90, 128), (170, 255), (250, 0))
    made = await images.make(encoded(quarters(900, 900, values, "LA"), "PNG"))
    for size in made.files:
        found = corners(made.picture(size), "LA")
        assert is_near(found[:3], values[:3])
        assert found[3][1] == 0


async def test_grey_of_16_bits_keeps_them_all(images: Studio) -> None:
    values = tuple(value * 256 + 7 for value in GREYS)
    picture = quarters(900, 900, values, "I;16")
    made = await images.make(encoded(picture, "PNG"))
    assert made.picture().mode == "I;16"
    assert made.picture().tobytes() == picture.tobytes()
    for size in SIZES[1:]:
        assert is_near(corners(made.picture(size)), grey(GREYS))


async def test_grey_of_16_bits_with_a_clear_shade(images: Studio) -> None:
    rows = pictures.wide_rows(quarters(400, 400, GREYS, "L"))
    key = pictures.chunk(b"tRNS", bytes((GREYS[1], 77)))
    made = await images.make(pictures.png((400, 400), 16, 0, rows, key))
    for size in SIZES[1:]:
        found = corners(made.picture(size), "LA")
        assert [alpha for _, alpha in found] == [255, 0, 255, 255]
        assert is_near([found[0], found[2]], [(GREYS[0], 255), (GREYS[2], 255)])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
async def test_16_bits_a_channel_look_as_they_should(images: Studio, mode: str) -> None:
    picture = quarters(120, 120).convert(mode)
    colour_type = {"RGB": 2, "RGBA": 6, "LA": 4}[mode]
    rows = pictures.wide_rows(picture)
    made = await images.make(pictures.png(picture.size, 16, colour_type, rows))
    for size in made.files:
        assert is_near(corners(made.picture(size)), corners(picture))


async def test_16_bits_with_a_clear_colour(images: Studio) -> None:
    rows = pictures.wide_rows(quarters(120, 120))
    key = pictures.chunk(b"tRNS", b"".join(bytes((value, 77)) for value in BLUE))
    made = await images.make(pictures.png((120, 120), 16, 2, rows, key))
    for size in made.files:
        found = corners(made.picture(size), "RGBA")
        assert [one[3] for one in found] == [255, 255, 0, 255]
        assert is_near([found[0]], [(*RED, 255)])


@pytest.mark.parametrize("is_adobe", [True, False])
async def test_cmyk_becomes_rgb_however_ink_is_counted(images: Studio, is_adobe: bool) -> None:
    file = encoded(quarters(400, 400).convert("CMYK"), "JPEG", quality=95)
    if not is_adobe:
        inverted = ImageChops.invert(quarters(400, 400).convert("CMYK"))
        file = pictures.without_segment(encoded(inverted, "JPEG", quality=95), 0xEE)
    assert (b"Adobe" in file) is is_adobe
    made = await images.make(file)
    for size in made.files:
        assert made.picture(size).mode == "RGB"
        assert is_near(corners(made.picture(size)), CORNERS, by=16)


# Metadata


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
async def test_every_orientation_is_upright(images: Studio, kind: str, orientation: int) -> None:
    turn = {
        2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        3: PIL.Image.Transpose.ROTATE_180,
        4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        5: PIL.Image.Transpose.TRANSPOSE,
        6: PIL.Image.Transpose.ROTATE_90,
        7: PIL.Image.Transpose.TRANSVERSE,
        8: PIL.Image.Transpose.ROTATE_270,
    }.get(orientation)
    upright = quarters(160, 80)
    stored = upright if turn is None else upright.transpose(turn)
    made = await images.make(encoded(stored, kind, exif=pictures.exif(orientation), quality=95))
    assert (made.image.width, made.image.height) == (160, 80)
    for size in made.files:
        assert is_near(corners(made.picture(size)), CORNERS)


def jpeg_with_everything() -> bytes:
    file = encoded(
        quarters(200, 100),
        "JPEG",
        exif=pictures.exif(),
        xmp=XMP,
        comment=SECRET,
        dpi=(300, 300),
        icc_profile=pictures.profile_that_swaps_red_and_green(),
        quality=95,
    )
    return pictures.with_segment(file, 0xED, b"Photoshop 3.0\0" + SECRET) + SECRET


def png_with_everything() -> bytes:
    words = PngInfo()
    words.add_text("Author", SECRET.decode())
    words.add_itxt("XML:com.adobe.xmp", XMP.decode())
    words.add_text("Comment", SECRET.decode() * 9, zip=True)
    words.add(b"prVt", SECRET)
    words.add(b"prVt", SECRET, after_idat=True)
    return (
        encoded(
            quarters(200, 100),
            "PNG",
            exif=pictures.exif(),
            pnginfo=words,
            dpi=(300, 300),
            icc_profile=pictures.profile_that_swaps_red_and_green(),
        )
        + SECRET
    )


def webp_with_everything() -> bytes:
    profile = pictures.profile_that_swaps_red_and_green()
    picture = quarters(200, 100)
    return (
        encoded(picture, "WEBP", exif=pictures.exif(), xmp=XMP, icc_profile=profile, quality=95)
        + SECRET
    )


@pytest.mark.parametrize("file", [jpeg_with_everything, png_with_everything, webp_with_everything])
async def test_nothing_is_left_but_pixels_in_srgb(
    images: Studio, file: Callable[[], bytes]
) -> None:
    data = file()
    assert data.count(SECRET) > 3
    made = await images.make(data)
    for size in made.files:
        red, green, _, white = corners(made.picture(size))
        assert red[1] > 150 > red[0]
        assert green[0] > 150 > green[1]
        assert is_near([white], [WHITE])


@pytest.mark.parametrize("kind", MOVING)
async def test_nothing_is_left_of_a_film_but_its_frames(images: Studio, kind: str) -> None:
    words = {"comment": SECRET} if kind == "GIF" else {"exif": pictures.exif()}
    frames = [quarters(60, 40), quarters(60, 40, CORNERS[::-1])]
    made = await images.make(film(kind, frames, [50, 50], **words) + SECRET)
    assert len(shown(made.files["original"]).frames) == 2


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
async def test_a_grey_profile_is_applied(images: Studio, mode: str) -> None:
    values: Any = {"L": GREYS, "LA": [(grey, 255) for grey in GREYS]}.get(
        mode, [grey * 256 for grey in GREYS]
    )
    linear = pictures.grey_profile(gamma=1.0)
    made = await images.make(encoded(quarters(80, 80, values, mode), "PNG", icc_profile=linear))
    found = [value for value, *_ in corners(made.picture())]
    assert all(after > before + 3 for before, after in zip(GREYS[:3], found, strict=False))


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile",
        bytes(128),
        pictures.profile_that_swaps_red_and_green()[:200],
        pictures.grey_profile(gamma=2.2),
        random.Random(9).randbytes(5000),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
async def test_a_profile_that_does_not_fit_is_ignored(
    images: Studio, kind: str, profile: bytes
) -> None:
    made = await images.make(encoded(quarters(80, 80), kind, icc_profile=profile, quality=95))
    assert is_near(corners(made.picture()), CORNERS)


@pytest.mark.parametrize(
    "words", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
async def test_broken_exif_is_ignored(images: Studio, words: bytes) -> None:
    file = pictures.with_segment(encoded(quarters(80, 80), "JPEG", quality=95), 0xE1, words)
    made = await images.make(file)
    assert is_near(corners(made.picture()), CORNERS)


# Films


def steps(count: int, *, is_clear: bool = False, shades: int = 3) -> list[Picture]:
    """A square that wanders; what it leaves is as before."""
    ground = (0, 0, 0, 0) if is_clear else (10, 20, 30, 255)
    frames = []
    for step in range(count):
        frame = PIL.Image.new("RGBA", (64, 48), ground)
        for shade in range(shades):
            colour = (250 - shade, 40 * step, shade, 255)
            frame.paste(colour, (8 * step + shade % 8, 10 + shade // 8, 8 * step + 9, 30))
        frames.append(frame)
    return frames


@pytest.mark.parametrize("is_clear", [False, True])
@pytest.mark.parametrize("kind", MOVING)
async def test_a_film_looks_the_same_frame_by_frame(
    images: Studio, kind: str, is_clear: bool
) -> None:
    frames, durations_ms = steps(5, is_clear=is_clear), [40, 50, 1000, 70, 200]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if kind == "GIF":
        options["disposal"] = 2
    file = film(kind, frames, durations_ms, loop=3, **options)
    made = await images.make(file)
    found, expected = shown(made.files["original"]), shown(file)
    assert found.durations_ms == durations_ms
    assert made.picture().info["loop"] == 3
    for frame, source in zip(found.frames, expected.frames, strict=True):
        difference = ImageStat.Stat(ImageChops.difference(on_grey(frame), on_grey(source)))
        assert max(difference.mean) <= (6 if kind == "WEBP" else 0)
    for size in SIZES[1:]:
        assert getattr(made.picture(size), "n_frames", 1) == 1


def on_grey(picture: Picture) -> Picture:
    ground = PIL.Image.new("RGBA", picture.size, (128, 128, 128, 255))
    return PIL.Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")


@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
async def test_a_gif_of_any_disposal_looks_the_same(images: Studio, disposal: int) -> None:
    file = film("GIF", steps(4), [50] * 4, disposal=disposal)
    found = (await images.make(file)).files["original"]
    assert as_seen(found) == as_seen(file)


async def test_a_gif_of_many_colours_has_them_all_where_no_frame_changes_too_many(
    images: Studio,
) -> None:
    frames = [PIL.Image.new("RGB", (40, 40), (step, 0, 0)) for step in range(3)]
    for step, frame in enumerate(frames):
        for before in frames[:step]:
            frame.paste(before.crop((0, 0, 40, 13 * step)))
        for x in range(40):
            for y in range(13 * step, 13 * step + 6):
                frame.putpixel((x, y), (5 * x, 20 * y % 256, 80 * step))
    as_gif = gif_films.encoded([frame.convert("RGBA") for frame in frames], [50] * 3, 0)
    made = await images.make(as_gif)
    for found, frame in zip(shown(made.files["original"]).frames, frames, strict=True):
        assert found.convert("RGB").tobytes() == frame.tobytes()


async def test_a_frame_with_nothing_to_see_is_one(images: Studio) -> None:
    """Pillow writes a second file into the film for it."""
    nothing = PIL.Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    file = gif_films.encoded([steps(1)[0], nothing, steps(2)[1]], [50] * 3, 0)
    made = await images.make(file)
    assert len(shown(made.files["original"]).frames) == 3
    assert shown(made.files["original"]).frames[1].getextrema()[3] == (0, 0)  # type: ignore[index]


async def test_a_gif_that_plays_once_does(images: Studio) -> None:
    made = await images.make(film("GIF", steps(3), [50] * 3))
    assert "loop" not in made.picture().info


@pytest.mark.parametrize("kind", MOVING)
async def test_the_longest_times_have_room(images: Studio, kind: str) -> None:
    pair = steps(2)
    frames = [pair[0], pair[0], pair[0].copy(), *pair[1:]]
    longest = {"GIF": 655_350, "PNG": 65_535, "WEBP": 2**24 - 1}[kind]
    made = await images.make(film(kind, steps(2), [longest, longest]))
    assert len(shown(made.files["original"]).frames) == 2
    third = longest // 4
    made = await images.make(film(kind, frames, [third, third, third, 50]))
    assert sum(shown(made.files["original"]).durations_ms) >= third * 3


async def test_a_film_turned_by_its_camera_is_upright(images: Studio) -> None:
    frames = [quarters(80, 40), quarters(80, 40, CORNERS[::-1])]
    turned = [frame.transpose(PIL.Image.Transpose.ROTATE_90) for frame in frames]
    made = await images.make(film("WEBP", turned, [50, 50], exif=pictures.exif(6), quality=95))
    first, second = shown(made.files["original"]).frames
    assert first.size == (80, 40)
    assert is_near(corners(first), CORNERS, by=30)
    assert is_near(corners(second), CORNERS[::-1], by=30)


async def test_the_image_for_those_who_can_not_show_a_png_film_is_no_frame(
    images: Studio,
) -> None:
    file = encoded(
        PIL.Image.new("RGBA", (64, 48), RED),
        "PNG",
        save_all=True,
        default_image=True,
        append_images=steps(3),
        duration=50,
    )
    found = shown((await images.make(file)).files["original"])
    assert [frame.tobytes() for frame in found.frames] == [frame.tobytes() for frame in steps(3)]


async def test_a_gif_frame_beyond_its_canvas_is_cut(images: Studio) -> None:
    file = bytearray(film("GIF", steps(2), [50, 50]))
    at = file.index(b"\x2c", file.index(b"\x2c") + 1)
    file[at + 1 : at + 3] = struct.pack("<H", 60)
    made = await images.make(bytes(file))
    assert {frame.size for frame in shown(made.files["original"]).frames} == {(64, 48)}


# What is refused


async def refusal(images: Studio, data: bytes) -> ImageRefused:
    with pytest.raises(ImageRefused) as refused:
        await images.make(data)
    assert str(refused.value)
    return refused.value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"GIF",
        b"hello",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"RIFF\0\0\0\0WAVE",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        *(
            encoded(quarters(8, 8), kind)
            for kind in ("BMP", "TIFF", "ICO", "PPM", "JPEG2000", "AVIF")
        ),
    ],
)
async def test_what_is_none_of_the_four_kinds_is_no_image(images: Studio, data: bytes) -> None:
    assert isinstance(await refusal(images, data), NotAnImage)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_image_that_ends_early_is_refused_wherever_it_ends(
    images: Studio, kind: str
) -> None:
    whole = encoded(quarters(64, 64), kind)
    for length in {16, 40, len(whole) // 2, len(whole) - 20, len(whole) - 2, len(whole) - 1}:
        assert isinstance(await refusal(images, whole[:length]), ImageBroken), length


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
async def test_a_film_that_ends_early_is_refused(images: Studio, kind: str) -> None:
    whole = film(kind, steps(4), [50] * 4)
    assert isinstance(await refusal(images, whole[: len(whole) * 3 // 4]), ImageBroken)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_image_of_nothing_but_noise_behind_its_header_is_refused(
    images: Studio, kind: str
) -> None:
    whole = encoded(quarters(64, 64), kind)
    noise = random.Random(5).randbytes(len(whole) - 24)
    assert isinstance(await refusal(images, whole[:24] + noise), ImageBroken)


@pytest.mark.parametrize("kind", KINDS)
async def test_trailing_bytes_that_are_nothing_are_dropped(images: Studio, kind: str) -> None:
    whole = encoded(quarters(64, 64), kind)
    for trailing in (b"\0", b"\r\n", SECRET, random.Random(6).randbytes(5000)):
        made = await images.make(whole + trailing)
        assert made.files == (await images.make(whole)).files


async def test_the_second_picture_of_a_camera_is_dropped(images: Studio) -> None:
    whole = encoded(quarters(64, 64), "JPEG")
    assert (await images.make(whole + whole)).files == (await images.make(whole)).files
    several = encoded(quarters(64, 64), "MPO", save_all=True, append_images=[quarters(32, 32)])
    assert (await images.make(several)).image.width == 64


def archive() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archived:
        archived.writestr("a.txt", SECRET)
    return file.getvalue()


OTHERS = {
    "zip": archive(),
    "zip that is cut": archive()[:40],
    "pdf": b"\n%PDF-1.4\n%%EOF",
    "page": b"<HTML><body>",
    "script": b"\n<script>alert(1)</script>",
    "php": b"<?php system($_GET[0]);",
    "rar": b"Rar!\x1a\x07\x00",
    "7z": b"7z\xbc\xaf\x27\x1c",
    "program": b"\x7fELF\x02\x01",
    "png": encoded(quarters(8, 8), "PNG"),
    "gif": encoded(quarters(8, 8), "GIF"),
    "webp": encoded(quarters(8, 8), "WEBP"),
    "bmp": encoded(quarters(8, 8), "BMP"),
    "tiff": encoded(quarters(8, 8), "TIFF"),
}
FROM_CAMERAS = {
    "jpeg": encoded(quarters(8, 8), "JPEG"),
    "film": b"\0\0\0\x18ftypmp42" + random.Random(6).randbytes(5000),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("kind", KINDS)
async def test_an_image_that_is_something_else_as_well_is_refused(
    images: Studio, kind: str, other: bytes
) -> None:
    refused = await refusal(images, encoded(quarters(64, 64), kind) + other)
    assert isinstance(refused, ImageBroken)
    assert "something else" in str(refused)


@pytest.mark.parametrize("other", FROM_CAMERAS.values(), ids=FROM_CAMERAS)
@pytest.mark.parametrize("kind", KINDS)
async def test_what_cameras_put_behind_a_jpeg_is_dropped_there_and_refused_elsewhere(
    images: Studio, kind: str, other: bytes
) -> None:
    whole = encoded(quarters(64, 64), kind)
    if kind == "JPEG":
        assert (await images.make(whole + other)).files == (await images.make(whole)).files
    else:
        assert "something else" in str(await refusal(images, whole + other))


@pytest.mark.parametrize("other", [OTHERS["zip"], OTHERS["pdf"], OTHERS["script"]])
async def test_what_hides_inside_of_an_image_is_found_too(images: Studio, other: bytes) -> None:
    jpeg = pictures.with_segment(encoded(quarters(64, 64), "JPEG"), 0xFE, other)
    assert "something else" in str(await refusal(images, jpeg))
    rows = b"".join(b"\0" + bytes(8) for _ in range(8))
    png = pictures.png((8, 8), 8, 0, rows, pictures.chunk(b"prVt", other))
    assert "something else" in str(await refusal(images, png))


# Bombs


async def test_a_file_over_ten_megabytes_is_too_large(images: Studio) -> None:
    whole = encoded(quarters(64, 64), "JPEG")
    at_most = whole + bytes(MAX_BYTES - len(whole))
    assert (await images.make(at_most)).image.width == 64
    assert isinstance(await refusal(images, at_most + b"\0"), ImageTooLarge)


def declared(width: int, height: int) -> dict[str, bytes]:
    """Small files that say they are huge."""
    gif, jpeg, webp = (
        bytearray(encoded(quarters(64, 64), kind)) for kind in ("GIF", "JPEG", "WEBP")
    )
    struct.pack_into("<HH", gif, 6, width, height)
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, height, width)
    extended = b"VP8X\x0a\0\0\0\0\0\0\0" + b"".join(
        struct.pack("<I", side - 1)[:3] for side in (min(width, 16384), min(height, 16384))
    )
    webp[12:12] = extended
    struct.pack_into("<I", webp, 4, len(webp) - 8)
    png = pictures.png((width, height), 8, 2, bytes(200))
    return {"GIF": bytes(gif), "JPEG": bytes(jpeg), "WEBP": bytes(webp), "PNG": png}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(65_000, 65_000), (8_000, 5_001), (6_000, 6_667)])
async def test_a_picture_over_forty_megapixels_is_too_large_before_it_is_decoded(
    images: Studio, kind: str, size: tuple[int, int]
) -> None:
    assert isinstance(await refusal(images, declared(*size)[kind]), ImageTooLarge)
    assert peak_bytes() < SOME_BYTES


@pytest.mark.parametrize("kind", MOVING)
async def test_frames_that_add_up_are_too_large(images: Studio, kind: str) -> None:
    frames = [PIL.Image.new("L", (2_000, 1_000), 12 * step) for step in range(21)]
    if kind == "WEBP":
        frames = [frame.convert("RGB") for frame in frames]
    assert isinstance(await refusal(images, film(kind, frames, [50] * 21)), ImageTooLarge)
    assert peak_bytes() < SOME_BYTES


async def test_a_million_tiny_frames_are_too_large(images: Studio) -> None:
    head = encoded(PIL.Image.new("L", (1, 1)), "GIF")
    at = head.index(b"\x2c")
    frame = head[at:-1]
    assert isinstance(await refusal(images, head[:at] + frame * 20_000 + b";"), ImageTooLarge)


async def test_a_profile_or_text_that_inflates_is_bounded(images: Studio) -> None:
    huge = zlib.compress(bytes(200_000_000), 9)
    rows = b"".join(b"\0" + bytes(8) for _ in range(8))
    for name in (b"iCCP", b"zTXt"):
        bomb = pictures.chunk(name, b"name\0\0" + huge)
        with pytest.raises(ImageBroken):
            await images.make(pictures.png((8, 8), 8, 0, rows, bomb))
    assert peak_bytes() < SOME_BYTES


async def test_a_source_of_low_quality_does_not_grow_beyond_what_may_be_stored(
    images: Studio,
) -> None:
    noise = PIL.Image.frombytes("L", (4_000, 4_000), random.Random(7).randbytes(16_000_000))
    file = encoded(noise, "JPEG", quality=70)
    assert len(file) < MAX_BYTES < len(encoded(noise, "JPEG", quality=85))
    made = await images.make(file, ["original"])
    assert MAX_BYTES / 2 < made.image.file_size <= MAX_BYTES


def peak_bytes() -> int:
    """Of the workers' address space, at any time so far."""
    statuses = [Path(f"/proc/{worker.pid}/status").read_text() for worker in workers()]
    return max((int(text.split("VmPeak:")[1].split()[0]) for text in statuses), default=0) * 1024


# Whatever comes


SEEDS = [
    *(encoded(quarters(24, 16), kind) for kind in KINDS),
    encoded(quarters(24, 16), "JPEG", progressive=True),
    encoded(quarters(24, 16).convert("CMYK"), "JPEG"),
    encoded(quarters(24, 16).convert("P"), "PNG", transparency=0),
    encoded(quarters(24, 16, [value * 256 for value in GREYS], "I;16"), "PNG"),
    *(film(kind, steps(3, is_clear=True), [50, 60, 70], loop=0) for kind in MOVING),
    jpeg_with_everything(),
    png_with_everything(),
    webp_with_everything(),
]
EDITS = st.lists(
    st.tuples(st.integers(0, 2**16), st.binary(max_size=4), st.integers(0, 8)),
    min_size=1,
    max_size=6,
)


@pytest.mark.fuzz
@given(data=st.binary(max_size=200), head=st.sampled_from([seed[:30] for seed in SEEDS] + [b""]))
async def test_random_bytes_are_refused(images: Studio, data: bytes, head: bytes) -> None:
    assert await is_made_or_refused(images, head + data)


@pytest.mark.fuzz
@given(
    seeds=st.lists(st.tuples(st.sampled_from(SEEDS), EDITS), min_size=6, max_size=6),
    is_sealed=st.booleans(),
)
async def test_a_mutated_image_is_made_or_refused(
    images: Studio, seeds: list[tuple[bytes, list[tuple[int, bytes, int]]]], is_sealed: bool
) -> None:
    for seed, edits in seeds:
        data = bytearray(seed)
        for at, put, taken in edits:
            at %= len(data) + 1
            data[at : at + taken] = put
        assert await is_made_or_refused(images, sealed(bytes(data)) if is_sealed else bytes(data))


@pytest.mark.fuzz
@given(
    frames=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=4),
    kind=st.sampled_from(MOVING),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA"]),
)
async def test_any_film_is_made(
    images: Studio, frames: list[tuple[int, int]], kind: str, mode: str
) -> None:
    pictures_of_it = []
    for step, size in enumerate(frames):
        frame = PIL.Image.new("RGBA", (40, 30), (0, 0, 0, 0))
        frame.paste(quarters(*size, CORNERS[::-1] if step % 2 else CORNERS), (0, 0))
        pictures_of_it.append(frame.convert(mode))
    file = film(kind, pictures_of_it, [50] * len(frames))
    made = await images.make(file)
    assert made.picture().size == (40, 30)
    if kind != "WEBP":
        assert as_seen(made.files["original"]) == as_seen(file)


def as_seen(data: bytes) -> list[bytes]:
    """Frames that follow one like them are not told apart."""
    frames = [on_grey(frame).tobytes() for frame in shown(data).frames]
    return [frame for frame, before in zip(frames, [b"", *frames], strict=False) if frame != before]


async def is_made_or_refused(images: Studio, data: bytes) -> bool:
    with suppress(ImageRefused):
        await images.make(data)
    return peak_bytes() <= Limits().memory_bytes


def sealed(data: bytes) -> bytes:
    """A PNG's checksums put right, so that what is changed reaches the decoder."""
    if not data.startswith(pictures.PNG):
        return data
    at, whole = len(pictures.PNG), pictures.PNG
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        whole += pictures.chunk(kind, data[at + 8 : at + 8 + length])
        at += 12 + length
    return whole + data[at:]
