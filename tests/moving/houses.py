"""Two houses for a log to move between: databases, secrets and buckets of their own."""

import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from minio import Minio

from api import moving
from infra.bus import Bus
from infra.embedded.s3 import S3
from infra.keyring import Keyring, Secret
from infra.moving import lines
from infra.projector import Projector
from infra.settings import Settings
from projections import PROJECTIONS
from tests.acceptance.client import new_id
from tests.api.served import settings, stored_in
from tests.infra import machines
from tests.infra.daemons import LOGGER, connected, tasks
from tests.infra.machines import Machine

# Of an event that makes no difference to the projection; tests/moving/test_moving_skips.py has others.
NOTE_SKIP = """
    INSERT INTO skipped_events (projection, position, type, reason, why, skipped_at)
    SELECT 'reactions', position, type, 'a reason', 'because', clock_timestamp()
    FROM event_log
    WHERE position = 1
"""
OTHER_SECRET_TEXT = "the secret of the new house, of enough characters"


def house(
    url: str, server: S3, *, nats_url: str = "", bucket: str = "", **changed: Any
) -> Settings:
    """Its bucket is made if none is named."""
    bucket = bucket or made_bucket(server)
    return settings(
        url, nats_url or "nats://127.0.0.1:1", s3_bucket=bucket, **stored_in(server), **changed
    )


def made_bucket(server: S3) -> str:
    bucket = f"b{new_id()}"
    host = server.endpoint.removeprefix("http://")
    keys = {"access_key": server.access_key, "secret_key": server.secret_key}
    Minio(host, **keys, secure=False, region="us-east-1").make_bucket(bucket)
    return bucket


@asynccontextmanager
async def writing(at: Settings) -> AsyncIterator[Machine]:
    async with machines.running(at.database_url, secret=secret(at)) as machine:
        yield machine


async def note_skip(url: str) -> None:
    async with connected(url) as connection:
        await connection.execute(NOTE_SKIP)


def secret(at: Settings) -> Secret:
    return Secret((at.secret or "").encode())


def keyring(at: Settings, machine: Machine) -> Keyring:
    return Keyring(secret(at), machine.pool)


@asynccontextmanager
async def projecting(at: Settings, nats_url: str) -> AsyncIterator[None]:
    """All projectors, with that house's keys."""
    async with writing(at) as machine, Bus(nats_url, name="test projector") as bus:
        projectors = [
            Projector(
                projection,
                database_url=at.database_url,
                keyring=keyring(at, machine),
                bus=bus,
                logger=LOGGER,
            )
            for projection in PROJECTIONS
        ]
        async with tasks(*(projector.run() for projector in projectors)):
            yield


async def exported(at: Settings, path: Path) -> dict[str, str]:
    """Digests of all the files of it, by name."""
    await moving.run_export(at, path)
    return digests(path)


def digests(path: Path) -> dict[str, str]:
    directory = lines.objects_directory(path)
    files = [file for file in directory.rglob("*") if file.is_file()]
    found = {str(file.relative_to(directory)): file.read_bytes() for file in files}
    return {
        name: hashlib.sha256(data).hexdigest()
        for name, data in {"": path.read_bytes(), **found}.items()
    }


def chained(bodies: Iterable[dict[str, Any] | bytes]) -> bytes:
    """A file whose digests are right, whatever its lines say."""
    digest, text = "", b""
    for body in bodies:
        encoded = body if isinstance(body, bytes) else msgspec.json.encode(body)
        digest = lines.chained(digest, encoded)
        text += encoded[:-1] + b',"digest":"%s"}\n' % digest.encode()
    return text


def unchained(text: bytes) -> list[dict[str, Any]]:
    """The lines without their digests."""
    decoded = [msgspec.json.decode(line, type=dict[str, Any]) for line in text.splitlines()]
    for line in decoded:
        del line["digest"]
    return decoded
