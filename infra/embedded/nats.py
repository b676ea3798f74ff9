"""A nats-server with JetStream of our own, in DIRECTORY/nats.

Listens on the loopback only, and asks for a password. What it stores is a copy of the log: the
directory may be deleted while it is down.
"""

import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from infra.embedded.process import (
    LOOPBACK,
    Log,
    Plan,
    Server,
    first_bytes,
    plain_environ,
    program,
    secret_file,
    while_running,
)

NAME = "messenger"
START_TIMEOUT_SECONDS = 60.0  # reading its store back is part of it
STOP_TIMEOUT_SECONDS = 10.0
PAYLOAD_BYTES_MAX = 8 * 1024 * 1024


class Nats(Server):
    """The server; `url` is good once it has started."""

    def __init__(self, directory: Path) -> None:
        self._data = directory.absolute() / "nats"
        self._password_file = directory.absolute() / "nats.password"
        # Tells it from another server that may have come to listen on the port.
        self._server_name = f"messenger-{secrets.token_hex(8)}"
        super().__init__(
            Plan(
                name="NATS",
                directory=directory.absolute(),
                log=Log(directory.absolute() / "logs" / "nats.log"),
                command=lambda port: [program("nats-server"), "-c", str(self._configuration(port))],
                answers=self._answers,
                environ=lambda: plain_environ(self._data),
                start_timeout_seconds=START_TIMEOUT_SECONDS,
                stop_timeout_seconds=STOP_TIMEOUT_SECONDS,
            )
        )

    @property
    def url(self) -> str:
        return f"nats://{NAME}:{secret_file(self._password_file)}@{LOOPBACK}:{self.port}"

    def _configuration(self, port: int) -> Path:
        """Written at every start, since the directory may have been wiped."""
        configuration = {
            "server_name": self._server_name,
            "host": LOOPBACK,
            "port": port,
            "max_payload": PAYLOAD_BYTES_MAX,
            "jetstream": {"store_dir": str(self._data)},
            "authorization": {"user": NAME, "password": secret_file(self._password_file)},
        }
        self._data.mkdir(mode=0o700, exist_ok=True)
        path = self._data / "server.conf"
        path.write_text(json.dumps(configuration, indent=2))
        return path

    async def _answers(self, port: int) -> bool:
        information = await first_bytes(LOOPBACK, port)
        return information.startswith(b"INFO ") and self._server_name.encode() in information


@contextlib.asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Nats]:
    """The server while the block runs."""
    async with while_running(Nats(directory)) as server:
        yield server
