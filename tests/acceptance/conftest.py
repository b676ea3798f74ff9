"""One whole system for all acceptance tests: `messenger up` with two API processes.

Tests share it and never wait for one another: each makes users and chats of its own. In the end
the read models are rebuilt and compared with the live ones.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.client import Messenger, Person, connected
from tests.faults.test_up import Running
from tests.infra.machines import SECRET_TEXT

CROWD = 308
VERIFY_SECONDS = 90.0


@pytest.fixture(scope="session")
def messenger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Messenger]:
    directory: Path = tmp_path_factory.mktemp("messenger")
    up = Running(
        directory, "--port", "0", "--workers", "2", ENV="test", BCRYPT_ROUNDS="4",
        RATE_LIMITS="off", SECRET=SECRET_TEXT, READ_WAIT_SECONDS="30",
    )  # fmt: skip
    try:
        with connected(up.until_ready()) as messenger:
            yield messenger
        verify(directory)
    finally:
        up.stopped_by(signal.SIGTERM)


def verify(directory: Path) -> None:
    """Whatever the tests did, rebuilt read models are as the live ones."""
    command = [sys.executable, "-m", "api.cli", "verify", "--data-dir", str(directory)]
    environ = {**os.environ, "MESSENGER_ENV": "test", "MESSENGER_SECRET": SECRET_TEXT}
    ran = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=VERIFY_SECONDS, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="session")
def crowd(messenger: Messenger) -> list[Person]:
    """Enough people for the greatest group and some more; nothing becomes of them."""
    return messenger.people(*["member"] * CROWD)
