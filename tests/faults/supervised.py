"""`messenger up`, whose programs can be made to end themselves, and reach PostgreSQL and NATS by
cables that can be cut (tests.faults.cable).

Where the servers are, and what its programs are told, is in `environ.json` of the directory of
faults; the ports of the cables come in FAULTS_CABLES.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from api.cli import main
from api.up import kept
from api.up.supervisor import _Up
from tests.faults.cable import by_cable
from tests.faults.points import DIRECTORY_VARIABLE

CABLES_VARIABLE = "FAULTS_CABLES"
CABLED = ("MESSENGER_DATABASE_URL", "MESSENGER_NATS_URL")

environ_of = _Up._child_environ


def child_environ(self: Any) -> dict[str, str]:
    environ = environ_of(self)
    told = Path(os.environ[DIRECTORY_VARIABLE], "environ.json")
    new = told.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(json.dumps(environ))
    new.replace(told)
    ports = json.loads(os.environ[CABLES_VARIABLE])
    return environ | {name: by_cable(environ[name], ports[name]) for name in CABLED}


if __name__ == "__main__":
    kept.COMMAND = (sys.executable, "-P", "-m", "tests.faults.armed")  # type: ignore[assignment]
    _Up._child_environ = child_environ  # type: ignore[method-assign]
    main()
