"""`messenger export` and `messenger import jsonl`: the parts they need, and what they print."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from api.upkeep import Bar, progress_bar
from infra import database
from infra.keyring import Keyring, Secret
from infra.moving.export import Source, export
from infra.moving.importing import Target, import_export
from infra.objects import Objects
from infra.settings import Settings

KEYRING_POOL_SIZE = 2
MISSING_SHOWN = 20


async def run_export(settings: Settings, path: Path) -> None:
    async with _house(settings, "export") as house:
        with progress_bar() as progress:
            exported = await export(path, Source(*house), Bar(progress, "export"))
    head = exported.head
    print(
        f"{path}: {exported.lines} lines up to position {head.position} of epoch {head.epoch}, "
        f"{exported.objects} objects"
    )
    if exported.missing:
        shown = "\n".join(f"  {key}" for key in exported.missing[:MISSING_SHOWN])
        print(f"the object store lacks {len(exported.missing)}:\n{shown}", file=sys.stderr)


async def run_import(settings: Settings, path: Path) -> None:
    async with _house(settings, "import") as house:
        with progress_bar() as progress:
            imported = await import_export(path, Target(*house), Bar(progress, "import"))
    print(
        f"{path}: {imported.lines} lines imported, {imported.objects} objects; "
        f"the log is at position {imported.head} of epoch {imported.epoch}"
    )


@asynccontextmanager
async def _house(
    settings: Settings, name: str
) -> AsyncIterator[tuple[database.Connection, Keyring, Secret, Objects]]:
    url = settings.database_url
    async with (
        await database.connect(url, name=name) as connection,
        database.pool(url, name=f"{name} keys", size=KEYRING_POOL_SIZE) as pool,
        Objects(settings) as objects,
    ):
        secret = await Secret.load(settings.secret, connection)
        yield connection, Keyring(secret, pool), secret, objects
