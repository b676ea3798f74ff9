"""An image's renditions, made with Pillow; runs in image workers only.

Every one is encoded anew from pixels alone: upright, in sRGB, without a word of metadata. The
original keeps its kind, its size and, where it moves, its frames, times and loops; medium and
thumbnail are of its first frame, in the same kind. The thumbnail is always 300 x 300: what is
smaller is enlarged to it. PNG is lossless. Of colour in 16 bits a channel Pillow reads the
upper 8; grey keeps its 16.
"""

import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import PIL.Image
from PIL import GifImagePlugin, ImageChops, ImageCms, ImageMath, ImageOps, PngImagePlugin
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Resampling, Transpose
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from domain.attachment import FileType, Size
from infra.errors import ImageBroken, ImageTooLarge
from infra.images import gif_films
from infra.images.jobs import MAX_BYTES, MEGABYTE

MAX_PIXELS = 40_000_000
# What a film of tiny frames costs is not its pixels.
MAX_FRAMES = 2_000
MAX_PROFILE_BYTES = 4 * MEGABYTE
MEDIUM_PIXELS = 800
THUMBNAIL_PIXELS = 300
QUALITY: dict[Size, int] = {"original": 85, "medium": 80, "thumbnail": 75}
# Where the original would be over MAX_BYTES: a source of lower quality grows at ours.
LOWER_QUALITIES = (70, 55, 40, 25)
# 4 makes files hardly smaller, in twice to six times the time.
WEBP_METHOD = 2
ORIENTATION = 0x0112

Picture = PIL.Image.Image

UPRIGHT: dict[int, Transpose] = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
# By a colour profile's own name of what it describes: the mode to read it in.
PROFILED = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
GREY = ("1", "L", "LA", "I;16")

# Pillow refuses on its own at twice this, before it allocates.
PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
PngImagePlugin.MAX_TEXT_CHUNK = MAX_PROFILE_BYTES
# Else a GIF's later frames come in another mode than its first.
GifImagePlugin.LOADING_STRATEGY = GifImagePlugin.LoadingStrategy.RGB_ALWAYS
warnings.simplefilter("ignore")


class Film(NamedTuple):
    """A still has one frame; `loop` as in the file: None plays once, 0 for ever."""

    frames: list[Picture]
    durations_ms: list[int]
    loop: int | None


class Rendition(NamedTuple):
    data: bytes
    width: int
    height: int


def make(data: bytes, file_type: FileType, sizes: Sequence[Size]) -> dict[Size, Rendition]:
    """Raises ImageTooLarge or ImageBroken; MemoryError too."""
    film = _read(data, file_type)
    return {size: _rendition(film, file_type, size) for size in sizes}


# Reading


def _read(data: bytes, file_type: FileType) -> Film:
    try:
        return _film(OPENERS[file_type](BytesIO(data)))
    except (MemoryError, ImageTooLarge):
        raise
    except PIL.Image.DecompressionBombError:
        raise _too_many_pixels() from None
    except Exception as error:  # decoders raise whatever they stumble over
        raise ImageBroken("the image is corrupt") from error


def _open_png(file: BytesIO) -> PngImageFile:
    image = PngImageFile(file)
    key = image.info.get("transparency")
    if isinstance(key, tuple) and "16" in str(image.tile[0].args):
        # Pillow leaves the colour that is clear at 16 bits, and the pixels not.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _film(image: ImageFile) -> Film:
    count = getattr(image, "n_frames", 1)
    _check_size(image, count)
    frames: list[Picture] = []
    durations_ms: list[int] = []
    for index in range(count):
        image.seek(index)
        _check_size(image, index + 1)
        image.load()
        if index == 0 and count > 1 and getattr(image, "default_image", False):
            continue  # for those only who can not show the film
        frame = _moving(image, frames) if count > 1 else _pixels(image)
        duration_ms = int(image.info.get("duration", 0))
        if frames and frame.tobytes() == frames[-1].tobytes():
            durations_ms[-1] += duration_ms
        else:
            frames.append(frame)
            durations_ms.append(duration_ms)
    return Film(frames, durations_ms, image.info.get("loop"))


def _check_size(image: Picture, count: int) -> None:
    if count > MAX_FRAMES:
        raise ImageTooLarge(f"an image may have {MAX_FRAMES:,} frames at most")
    if image.width * image.height * count > MAX_PIXELS:
        raise _too_many_pixels()


def _too_many_pixels() -> ImageTooLarge:
    most = MAX_PIXELS // 1_000_000
    return ImageTooLarge(f"an image may have {most} megapixels at most, all frames together")


def _moving(image: ImageFile, before: list[Picture]) -> Picture:
    """All of a film's frames are alike: what one has outside of the first is not shown."""
    frame = _eight_bit(_pixels(image)).convert("RGBA")
    size = before[0].size if before else frame.size
    return frame if frame.size == size else frame.crop((0, 0, *size))


def _pixels(image: ImageFile) -> Picture:
    """The picture as it is meant to be seen, and nothing but it."""
    orientation = _orientation(image)
    seen = _in_srgb(_inked(image), image.info.get("icc_profile"))
    if seen.mode not in (*GREY, "P", "RGB", "RGBA"):
        seen = seen.convert("RGB")
    if orientation in UPRIGHT:
        seen = seen.transpose(UPRIGHT[orientation])
    elif seen is image:
        seen = image.copy()
    # What stays here, Pillow writes into the file.
    seen.info = {key: value for key, value in seen.info.items() if key == "transparency"}
    return seen


def _orientation(image: Picture) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - broken metadata is no reason to refuse the pixels
        return 1


def _inked(image: Picture) -> Picture:
    """Adobe's programs store how much ink is not there, and Pillow takes all CMYK for theirs."""
    is_plain = image.mode == "CMYK" and "adobe" not in image.info
    return ImageChops.invert(image) if is_plain else image


def _in_srgb(image: Picture, profile_bytes: bytes | None) -> Picture:
    if not profile_bytes:
        return image
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(profile_bytes))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        return _converted(image, profile)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a broken profile is ignored, as viewers do
        return image


def _converted(image: Picture, profile: ImageCms.ImageCmsProfile) -> Picture:
    mode = PROFILED.get(profile.profile.xcolor_space.strip(), "")
    is_grey = image.mode in GREY
    if (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and not is_grey) or not mode:
        return image  # of another image: it says nothing of this one
    seen = _eight_bit(image)
    alpha = seen.convert("RGBA").getchannel("A") if seen.has_transparency_data else None
    converted = ImageCms.profileToProfile(
        _bare(seen).convert(mode), profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert converted is not None
    if is_grey:
        converted = converted.convert("L")
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _bare(image: Picture) -> Picture:
    """Without its colour for transparent, which `convert` would look for in other colours."""
    return image.convert(image.mode.rstrip("A")) if image.mode in ("LA", "RGBA") else image


def _eight_bit(image: Picture) -> Picture:
    if image.mode != "I;16":
        return image
    wide = image.convert("I")
    grey = wide.point(lambda value: value * (1 / 256)).convert("L")
    key = image.info.get("transparency")
    if key is not None:
        seen = ImageMath.lambda_eval(lambda given: (given["wide"] != key) * 255, wide=wide)
        grey.putalpha(seen.convert("L"))
    return grey


# Making


def _rendition(film: Film, file_type: FileType, size: Size) -> Rendition:
    if size != "original":
        film = Film([RESIZED[size](_smooth(film.frames[0]))], [0], None)
    data = _encoded(film, file_type, QUALITY[size])
    for quality in LOWER_QUALITIES:
        if len(data) <= MAX_BYTES or file_type not in ("image/jpeg", "image/webp"):
            break
        data = _encoded(film, file_type, quality)
    if len(data) > MAX_BYTES:
        raise ImageTooLarge(f"stored losslessly the image takes over {MAX_BYTES // MEGABYTE} MB")
    return Rendition(data, *film.frames[0].size)


def _smooth(image: Picture) -> Picture:
    """In a mode that has shades between its colours."""
    if image.mode in ("L", "RGB", "RGBA", "LA"):
        is_keyed = "transparency" in image.info
        return image.convert("RGBA") if is_keyed else image
    if image.mode == "I;16":
        return _eight_bit(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode == "1" else "RGB")


def _medium(image: Picture) -> Picture:
    scale = MEDIUM_PIXELS / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(pixels * scale)) for pixels in image.size)
    return image.resize((width, height), Resampling.LANCZOS, reducing_gap=3.0)


def _thumbnail(image: Picture) -> Picture:
    size = (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
    return ImageOps.fit(image, size, Resampling.LANCZOS)


def _encoded(film: Film, file_type: FileType, quality: int) -> bytes:
    return ENCODERS[file_type](film, quality)


def _jpeg(film: Film, quality: int) -> bytes:
    return _saved(film.frames, "JPEG", quality=quality, progressive=True, optimize=True)


def _png(film: Film, _: int) -> bytes:
    movement = _movement(film, each_ms=2**16 - 1, together_ms=2**31 - 1)
    # A film's frames at the highest level cost more than a worker's time.
    return _saved(film.frames, "PNG", optimize=not movement, **movement)


def _webp(film: Film, quality: int) -> bytes:
    movement = _movement(film, each_ms=2**24 - 1, together_ms=2**31 - 1)
    return _saved(film.frames, "WEBP", quality=quality, method=WEBP_METHOD, **movement)


def _gif(film: Film, _: int) -> bytes:
    return gif_films.encoded(*film)


def _movement(film: Film, *, each_ms: int, together_ms: int) -> dict[str, Any]:
    """Empty for a still; times that the kind of file has no room for are cut."""
    count = len(film.frames)
    if count == 1:
        return {}
    if sum(film.durations_ms) > together_ms:
        each_ms = min(each_ms, together_ms // count)
    durations_ms = [min(duration, each_ms) for duration in film.durations_ms]
    return {"save_all": True, "duration": durations_ms, "loop": film.loop or 0}


def _saved(frames: Sequence[Picture], kind: str, **options: Any) -> bytes:
    file = BytesIO()
    if len(frames) > 1:
        options["append_images"] = frames[1:]
    frames[0].save(file, kind, **options)
    return file.getvalue()


RESIZED: dict[Size, Callable[[Picture], Picture]] = {"medium": _medium, "thumbnail": _thumbnail}

ENCODERS: dict[FileType, Callable[[Film, int], bytes]] = {
    "image/jpeg": _jpeg,
    "image/png": _png,
    "image/gif": _gif,
    "image/webp": _webp,
}

OPENERS: dict[FileType, Callable[[BytesIO], ImageFile]] = {
    "image/jpeg": JpegImageFile,
    "image/png": _open_png,
    "image/gif": GifImageFile,
    "image/webp": WebPImageFile,
}
