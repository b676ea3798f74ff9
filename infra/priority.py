"""Giving way to others on the same machine: what people wait for goes before what catches up.

Where the kernel shares the processors among sessions first (`sched_autogroup`), niceness counts
within a session only: then it is the session that has to be nice.
"""

import os
import random
import time
from pathlib import Path
from threading import Thread

# A ninth of the processor's time beside somebody who is not nice, all of it beside nobody.
CATCHING_UP = 10
# Hardly any while anyone else wants it.
LAST = 19
SESSION = Path("/proc/self/autogroup")
# The kernel takes ten such wishes a second from all users together.
ATTEMPTS = 40
PAUSE_SECONDS = 0.1


def give_way(niceness: int) -> None:
    """This process to all others, with its session if that is its own, as far as the kernel knows
    how. Nobody becomes less nice by it."""
    reached = os.nice(max(0, niceness - os.nice(0)))
    if os.getsid(0) == os.getpid():
        Thread(target=_make_session_nice, args=(reached,), daemon=True).start()


def _make_session_nice(niceness: int) -> None:
    for _ in range(ATTEMPTS):
        try:
            SESSION.write_text(str(niceness))
        except BlockingIOError:
            time.sleep(PAUSE_SECONDS * (1 + random.random()))
        except OSError:
            return
        else:
            return
