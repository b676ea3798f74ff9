"""The data directory of a `messenger up`: for one process at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from infra.embedded.process import StartError, make_data_directory


def absolute(path: Path) -> Path:
    return path.expanduser().absolute()


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """The data directory for us alone; the kernel lets go of it whatever ends us."""
    try:
        make_data_directory(directory)
        descriptor = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise StartError(f"data directory {directory} can not be used: {error.strerror}") from None
    try:
        _take(descriptor, directory)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode().strip()
        raise StartError(f"data directory {directory} is in use by process {holder}") from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
