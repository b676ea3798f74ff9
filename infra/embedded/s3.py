"""An S3 server of our own (`rclone serve s3`) on the files in DIRECTORY/s3, a bucket each folder."""

import contextlib
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

START_TIMEOUT_SECONDS = 20.0
STOP_TIMEOUT_SECONDS = 5.0
ACCESS_KEY = "messenger"
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class S3(Server):
    """The server; `endpoint` is good once it has started."""

    def __init__(self, directory: Path, *, bucket: str = "messenger") -> None:
        self._directory = directory.absolute()
        self._bucket = self._directory / "s3" / bucket
        super().__init__(
            Plan(
                name="S3",
                directory=self._directory,
                log=Log(self._directory / "logs" / "s3.log"),
                command=self._command,
                answers=self._answers,
                environ=self._environ,
                before_start=self._prepare,
                start_timeout_seconds=START_TIMEOUT_SECONDS,
                stop_timeout_seconds=STOP_TIMEOUT_SECONDS,
            )
        )

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def access_key(self) -> str:
        return ACCESS_KEY

    @property
    def secret_key(self) -> str:
        return secret_file(self._directory / "s3.key")

    def _command(self, port: int) -> list[str]:
        folder = str(self._bucket.parent)
        options = ["--addr", f"{LOOPBACK}:{port}", "--config", "", "--no-cleanup"]
        return [program("rclone"), "serve", "s3", folder, *options]

    def _environ(self) -> dict[str, str]:
        # The key goes this way since every user of the machine can read arguments. A list's
        # item in CSV: quoted, as it has a comma.
        keys = f'"{self.access_key},{self.secret_key}"'
        return {**plain_environ(self._directory), "RCLONE_AUTH_KEY": keys}

    async def _prepare(self) -> None:
        self._bucket.parent.mkdir(mode=0o700, exist_ok=True)
        self._bucket.mkdir(exist_ok=True)

    async def _answers(self, port: int) -> bool:
        return (await first_bytes(LOOPBACK, port, REQUEST)).startswith(b"HTTP/1.1 ")


@contextlib.asynccontextmanager
async def running(directory: Path, *, bucket: str = "messenger") -> AsyncIterator[S3]:
    """The server while the block runs."""
    async with while_running(S3(directory, bucket=bucket)) as server:
        yield server
