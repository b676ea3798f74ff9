"""Files given to image workers, and what they make of them."""

import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import psutil

from domain.attachment import SIZES, Size
from infra.images import pool
from infra.images.pool import WORKER, Image, Images
from tests.infra.pictures import PLAIN_PARTS, SECRET, Picture, opened, parts

HASTY = "tests.infra.hasty_worker"


class Made(NamedTuple):
    image: Image
    files: Mapping[Size, bytes]

    def picture(self, size: Size = "original") -> Picture:
        picture = opened(self.files[size])
        picture.load()
        return picture


class Studio(NamedTuple):
    images: Images
    directory: Path

    async def make(self, data: bytes, sizes: Sequence[Size] = SIZES) -> Made:
        """What is made says of itself what it is, holds nothing but pixels, and leaves nothing
        else in the directory."""
        with tempfile.TemporaryDirectory(dir=self.directory) as name:
            source, directory = _prepared(Path(name), data)
            image = await self.images.render(source, directory, sizes)
            made = Made(image, _files(directory, image, sizes))
        _check(made)
        return made


def _prepared(directory: Path, data: bytes) -> tuple[Path, Path]:
    source, made = directory / "source", directory / "made"
    source.write_bytes(data)
    made.mkdir()
    return source, made


def _files(directory: Path, image: Image, sizes: Sequence[Size]) -> dict[Size, bytes]:
    assert len(list(directory.iterdir())) == len(sizes)
    return {size: (directory / f"{size}.{image.extension}").read_bytes() for size in sizes}


@asynccontextmanager
async def studio(directory: Path, worker: str = HASTY, **options: Any) -> AsyncIterator[Studio]:
    with patch.object(pool, "WORKER", worker):
        async with Images(**{"workers": 1, **options}) as images:
            yield Studio(images, directory)


def workers() -> list[psutil.Process]:
    """Those of this process, from when they are what they shall be."""
    return [child for child in psutil.Process().children() if is_worker(child)]


def is_worker(process: psutil.Process) -> bool:
    try:
        is_one = not {WORKER, HASTY}.isdisjoint(process.cmdline())
        return is_one and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _check(made: Made) -> None:
    first, *_ = made.files.values()
    size = opened(first).size
    assert (made.image.width, made.image.height) == size
    assert made.image.file_size == len(first)
    for file in made.files.values():
        assert opened(file).get_format_mimetype() in (made.image.file_type, "image/apng")
        assert parts(file) <= PLAIN_PARTS, parts(file)
        assert SECRET not in file
    if "medium" in made.files:
        picture = opened(made.files["medium"])
        assert max(picture.size) == min(800, max(size))
    if "thumbnail" in made.files:
        assert opened(made.files["thumbnail"]).size == (300, 300)
