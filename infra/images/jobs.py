"""What an image worker is told and what it answers: a line of JSON each; and its limits."""

import msgspec

from domain.attachment import FileType, Size

MAX_BYTES = 10 * 1024 * 1024
MEGABYTE = 1024 * 1024


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one worker. The time that the image itself costs is counted in CPU seconds: a machine
    that has too much else to do is no fault of the image's."""

    memory_bytes: int = 1024 * MEGABYTE
    cpu_seconds: int = 20
    # Past it the worker hangs, or gets no CPU at all.
    wall_seconds: float = 60.0
    output_bytes: int = 256 * MEGABYTE
    open_files: int = 32


class Job(msgspec.Struct, frozen=True, kw_only=True):
    source: str
    directory: str
    sizes: tuple[Size, ...]


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """Of the first of the sizes."""

    file_type: FileType
    file_size: int
    width: int
    height: int


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """`kind`: the name of the class in infra.errors."""

    kind: str
    detail: str


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """Not for anything in the image: the disk is full, say, or there is a fault in our code."""

    detail: str
    is_fault: bool


Answer = Done | Refused | Failed
