"""The three servers as production has them: with TLS, passwords, and rights of their own for each."""

import select
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

from infra.embedded import postgres, s3
from infra.embedded.nats import START_TIMEOUT_SECONDS, STOP_TIMEOUT_SECONDS
from infra.embedded.process import (
    LOOPBACK,
    Log,
    Plan,
    Server,
    first_bytes,
    plain_environ,
    program,
    while_running,
)
from infra.embedded.s3 import S3
from tests.infra.certificates import Authority, Certificate

CONFIGURATION = Path(__file__).parents[2] / "infra" / "production" / "nats.conf"
# Of digits, as a password may be.
RELAY_PASSWORD = "1234567890123456789012"
READER_PASSWORD = "abcdef0123456789abcdef"
# The owner makes roles, and they may sign in.
CREATES_ROLES = postgres.CREATE.replace("CREATEDB", "CREATEDB CREATEROLE")
TLS_REQUEST = (8).to_bytes(4) + (80_877_103).to_bytes(4)
HBA = f"host all all {LOOPBACK}/32 scram-sha-256\n"


# Asks whoever comes for a certificate of our authority, and for nothing else.
ASKING = """
tls {
    cert_file: $NATS_CERTIFICATE
    key_file: $NATS_KEY
    ca_file: $NATS_CA
    verify: true
}
"""


class Nats(Server):
    """nats-server with a configuration: ours for production, if no other is given."""

    def __init__(
        self, directory: Path, names: dict[str, str], configuration: Path = CONFIGURATION
    ) -> None:
        listens = ("--addr", LOOPBACK, "--port")
        super().__init__(
            Plan(
                name="NATS",
                directory=directory,
                log=Log(directory / "logs" / "nats.log"),
                command=lambda port: [
                    program("nats-server"),
                    "-c",
                    str(configuration),
                    *listens,
                    str(port),
                ],
                answers=_says_hello,
                environ=lambda: plain_environ(directory) | names,
                start_timeout_seconds=START_TIMEOUT_SECONDS,
                stop_timeout_seconds=STOP_TIMEOUT_SECONDS,
            )
        )

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def relay_url(self) -> str:
        return f"tls://relay:{RELAY_PASSWORD}@{self.address}"

    @property
    def reader_url(self) -> str:
        return f"tls://reader:{READER_PASSWORD}@{self.address}"


async def _says_hello(port: int) -> bool:
    return (await first_bytes(LOOPBACK, port)).startswith(b"INFO ")


@asynccontextmanager
async def nats(directory: Path, certificate: Certificate) -> AsyncIterator[Nats]:
    names = {
        "NATS_STORE": str(directory / "nats"),
        "NATS_CERTIFICATE": str(certificate.certificate),
        "NATS_KEY": str(certificate.key),
        "NATS_RELAY_PASSWORD": f'"{RELAY_PASSWORD}"',
        "NATS_READER_PASSWORD": f'"{READER_PASSWORD}"',
    }
    async with while_running(Nats(directory, names)) as server:
        yield server


@asynccontextmanager
async def asking_nats(
    directory: Path, authority: Authority, certificate: Certificate
) -> AsyncIterator[str]:
    """The URL of one that asks for certificates."""
    names = {
        "NATS_CERTIFICATE": str(certificate.certificate),
        "NATS_KEY": str(certificate.key),
        "NATS_CA": str(authority.ca),
    }
    configuration = directory / "asking.conf"
    configuration.write_text(ASKING)
    async with while_running(Nats(directory, names, configuration)) as server:
        yield f"tls://{server.address}"


@asynccontextmanager
async def postgresql(directory: Path) -> AsyncIterator[postgres.Postgres]:
    """One whose owner may make roles, which may sign in."""
    with (
        patch.object(postgres, "CREATE", CREATES_ROLES),
        patch.object(postgres, "HBA", HBA),
    ):
        async with postgres.running(directory, is_durable=False) as server:
            yield server


class TlsDoor(threading.Thread):
    """Ends TLS in front of a PostgreSQL that was built without, and lets nobody else in.

    As a connection pooler does it: the client asks for TLS, and hears `S`. A thread of its own,
    since who connects may hold up the event loop.
    """

    def __init__(self, port: int, certificate: Certificate) -> None:
        super().__init__(daemon=True)
        self._behind = port
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate.certificate, certificate.key)
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            if client.recv(len(TLS_REQUEST)) != TLS_REQUEST:
                return
            client.sendall(b"S")
            with (
                self._context.wrap_socket(client, server_side=True) as secure,
                socket.create_connection((LOOPBACK, self._behind)) as server,
            ):
                _pass_on(secure, server)


def _pass_on(secure: ssl.SSLSocket, server: socket.socket) -> None:
    """Both ways, until one of them ends."""
    while True:
        ready = [secure] if secure.pending() else select.select([secure, server], [], [])[0]
        for one in ready:
            data = one.recv(65_536)
            if not data:
                return
            (server if one is secure else secure).sendall(data)


@contextmanager
def tls_door(server: postgres.Postgres, certificate: Certificate) -> Iterator[str]:
    """The server's URL through it."""
    door = TlsDoor(server.port, certificate)
    door.start()
    try:
        yield server.url.replace(f":{server.port}/", f":{door.port}/")
    finally:
        door.close()


class _S3(S3):
    """What it is asked before it counts as started has to be no HTTPS."""

    def __init__(self, directory: Path, certificate: Certificate) -> None:
        self._certificate = certificate
        super().__init__(directory)

    @property
    def endpoint(self) -> str:
        return super().endpoint.replace("http://", "https://")

    def _command(self, port: int) -> list[str]:
        tls = ["--cert", str(self._certificate.certificate), "--key", str(self._certificate.key)]
        return [*super()._command(port), *tls]

    async def _answers(self, port: int) -> bool:
        return (await first_bytes(LOOPBACK, port, s3.REQUEST)).startswith(b"HTTP/1.")


@asynccontextmanager
async def objects(directory: Path, certificate: Certificate) -> AsyncIterator[S3]:
    async with while_running(_S3(directory, certificate)) as server:
        yield server
