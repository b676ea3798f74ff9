"""Where uploads lie while they are on their way: a directory of each process, gone with it.

One that was killed could not clear up; the next process to start does. Whether it lives still is
told by the lock that it holds on its directory.
"""

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

PREFIX = "messenger-uploads-"
# Not to be taken for a dead process's until it is locked.
NEW_PREFIX = "new-" + PREFIX


@asynccontextmanager
async def spooling() -> AsyncIterator[Path]:
    """A directory that only this user can read."""
    clear_left()
    new = Path(tempfile.mkdtemp(prefix=NEW_PREFIX))
    directory = new.with_name(new.name.removeprefix("new-"))
    with _locked(new):
        os.rename(new, directory)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def scratch(parent: Path) -> AsyncIterator[Path]:
    """A directory in it for as long as the block runs. Not on the event loop: where others sync
    to the same disk, to make or remove a file can take as long as their syncs."""
    name = await asyncio.to_thread(tempfile.mkdtemp, dir=parent)
    try:
        yield Path(name)
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, name, ignore_errors=True))


def clear_left() -> None:
    """What processes left that are no more."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            with _locked(path):
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue  # its process lives, or it is another user's


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Raises OSError if another process holds it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
