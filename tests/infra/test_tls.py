"""TLS and credentials for the three servers: the right ones work, and nothing less does."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import psycopg
import pytest

from infra import database, migrate, pipelined
from infra.bus import Access, Bus
from infra.embedded.nats import Nats as PlainNats
from infra.embedded.postgres import Postgres
from infra.embedded.process import free_port
from infra.embedded.s3 import S3
from infra.errors import Unavailable
from infra.objects import Objects
from infra.settings import Settings, load
from tests.infra import guarded
from tests.infra.certificates import Authority, Certificate
from tests.infra.daemons import until
from tests.infra.guarded import Nats


class Trust(NamedTuple):
    """Our authority, a server's certificate by it, and an authority that signed nothing here."""

    ours: Authority
    certificate: Certificate
    other: Authority


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    directory = tmp_path_factory.mktemp("certificates")
    ours = Authority(directory / "ours", "ours")
    return Trust(ours, ours.sign("server"), Authority(directory / "other", "other"))


@pytest.fixture(scope="module")
async def database_server(
    anyio_backend: str, postgres: Postgres, trust: Trust
) -> AsyncIterator[str]:
    with guarded.tls_door(postgres, trust.certificate) as url:
        yield url


@pytest.fixture(scope="module")
async def nats(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, trust: Trust
) -> AsyncIterator[Nats]:
    async with guarded.nats(tmp_path_factory.mktemp("nats"), trust.certificate) as server:
        yield server


@pytest.fixture(scope="module")
async def store(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, trust: Trust
) -> AsyncIterator[S3]:
    async with guarded.objects(tmp_path_factory.mktemp("s3"), trust.certificate) as server:
        yield server


def verified(url: str, authority: Authority) -> str:
    return f"{url}?sslmode=verify-full&sslrootcert={authority.ca}"


async def test_postgresql_is_reached_by_tls_however_it_is_asked(
    database_server: str, trust: Trust
) -> None:
    url = verified(database_server, trust.ours)
    async with await database.connect(url, name="test") as connection:
        assert connection.pgconn.ssl_in_use
    async with pipelined.pool(url, name="test", size=1) as pool, pool.connection() as connection:
        assert connection.pgconn.ssl_in_use
    assert migrate.state(url).name == "behind"


@pytest.mark.parametrize("mode", ["sslmode=disable", "sslmode=verify-full&sslrootcert={other}"])
async def test_postgresql_is_not_reached_without_tls_or_by_a_strangers(
    database_server: str, trust: Trust, mode: str
) -> None:
    url = f"{database_server}?{mode.format(other=trust.other.ca)}"
    with pytest.raises(Unavailable, match=r"closed the connection|certificate"):
        await database.connect(url, name="test")


async def test_a_certificate_for_another_host_is_none_for_this(
    database_server: str, trust: Trust
) -> None:
    elsewhere = verified(database_server, trust.ours).replace("127.0.0.1", "localhost")
    with pytest.raises(psycopg.OperationalError, match="localhost"):
        await psycopg.AsyncConnection.connect(elsewhere)


async def test_nats_is_reached_by_tls_and_a_password(nats: Nats, trust: Trust) -> None:
    access = Access(ca=trust.ours.ca)
    async with Bus(nats.relay_url, name="test", access=access) as bus:
        await until(partial(_is_up, bus), "it is connected")
        assert await bus.extent("EVENT_LOG_1") is None
    # The scheme need not say it: what is to be trusted does.
    plain = nats.relay_url.replace("tls://", "nats://")
    async with Bus(plain, name="test", access=access) as bus:
        await until(partial(_is_up, bus), "it is connected")


async def test_nats_is_not_reached_by_who_trusts_another_or_has_no_password(
    nats: Nats, trust: Trust
) -> None:
    assert not await any_connected(
        (nats.relay_url, Access(ca=trust.other.ca)),
        (nats.relay_url, Access()),
        (f"tls://relay:wrong@{nats.address}", Access(ca=trust.ours.ca)),
        (f"tls://{nats.address}", Access(ca=trust.ours.ca)),
    )


async def _is_up(bus: Bus) -> bool:
    return bus.connected


async def any_connected(*tried: tuple[str, Access]) -> bool:
    """Each has the time that a process takes to start, and tries again and again."""

    async def is_connected(url: str, access: Access) -> bool:
        async with Bus(url, name="test", access=access) as bus:
            return bus.connected

    return any(await asyncio.gather(*(is_connected(*one) for one in tried)))


async def test_who_wants_tls_says_nothing_to_who_does_not_speak_it(trust: Trust) -> None:
    """A man in the middle who says so would be given the password."""
    heard = bytearray()

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.11.0","auth_required":true}\r\n')
        heard.extend(await reader.read(4096))
        writer.close()

    port = free_port()
    async with await asyncio.start_server(pretend, "127.0.0.1", port):
        address = f"relay:hidden@127.0.0.1:{port}"
        assert not await any_connected(
            (f"tls://{address}", Access()), (f"nats://{address}", Access(ca=trust.ours.ca))
        )
    assert bytes(heard) == b""


async def test_nats_may_ask_for_our_certificate(tmp_path: Path, trust: Trust) -> None:
    async with guarded.asking_nats(tmp_path, trust.ours, trust.certificate) as url:
        ours = trust.ours.sign("client")
        access = Access(trust.ours.ca, ours.certificate, ours.key)
        async with Bus(url, name="test", access=access) as bus:
            await until(partial(_is_up, bus), "it is connected")
        theirs = trust.other.sign("client")
        stranger = Access(trust.ours.ca, theirs.certificate, theirs.key)
        assert not await any_connected((url, stranger), (url, Access(trust.ours.ca)))


async def test_any_of_several_nats_servers_will_do(nats_server: PlainNats) -> None:
    nobody = f"nats://127.0.0.1:{free_port()}"
    async with Bus(f"{nobody},{nats_server.url}", name="test") as bus:
        await until(partial(_is_up, bus), "it is connected to the one that is there")


def stored(server: S3, **changed: Path) -> Settings:
    environ = {
        "MESSENGER_S3_ENDPOINT": server.endpoint,
        "MESSENGER_S3_ACCESS_KEY": server.access_key,
        "MESSENGER_S3_SECRET_KEY": server.secret_key,
    }
    return msgspec.structs.replace(load(environ, needs=(), looks_for_running=False), **changed)


async def test_the_object_store_is_reached_by_tls(store: S3, trust: Trust, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"an image")
    async with Objects(stored(store, s3_ca=trust.ours.ca)) as objects:
        await objects.put("chat/message/image.png", file, "image/png")
        assert await objects.below("chat/", 10) == ["chat/message/image.png"]
        assert objects.signed("chat/message/image.png").url.startswith("https://")
        await objects.remove(["chat/message/image.png"])
        assert await objects.below("chat/", 10) == []


async def test_an_object_store_that_is_not_trusted_gets_nothing(store: S3, trust: Trust) -> None:
    for settings in (stored(store), stored(store, s3_ca=trust.other.ca)):
        async with Objects(settings) as objects:
            with pytest.raises(Unavailable, match="does not answer"):
                await objects.below("chat/", 10)


def test_the_settings_say_whom_to_trust(trust: Trust) -> None:
    environ = {
        "MESSENGER_NATS_URL": "tls://nats.example:4222",
        "MESSENGER_NATS_CA": str(trust.ours.ca),
        "MESSENGER_S3_CA": str(trust.ours.ca),
    }
    settings = load(environ, needs=(), looks_for_running=False)
    assert (settings.nats_ca, settings.s3_ca) == (trust.ours.ca, trust.ours.ca)
