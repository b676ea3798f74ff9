"""Who gives way does so towards the whole machine, and nobody else is made to."""

import os
import subprocess
import sys

import pytest

from infra.priority import CATCHING_UP
from tests.infra.machines import niceness_of_session

PROGRAM = f"""
import os, threading
from infra.priority import give_way
from tests.infra.machines import niceness_of_session
os.nice(max(0, {{before}} - os.nice(0)))
give_way({CATCHING_UP})
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join()
session = niceness_of_session(os.getpid())
print(os.nice(0), *([] if session is None else [session]))
"""
WAIT_SECONDS = 60


def told(*, before: int, is_own_session: bool) -> tuple[int, int | None]:
    """Its niceness and that of its session, in a process that gives way."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        start_new_session=is_own_session,
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_SECONDS,
    )
    niceness, *session = done.stdout.split()
    return int(niceness), int(session[0]) if session else None


@pytest.mark.parametrize(("before", "after"), [(0, CATCHING_UP), (15, 15)])
def test_a_process_gives_way_with_its_own_session_and_becomes_no_less_nice(
    before: int, after: int
) -> None:
    niceness, session = told(before=before, is_own_session=True)
    assert niceness == max(after, os.nice(0))
    assert session in (None, niceness)


def test_others_of_a_session_are_not_made_to_give_way() -> None:
    ours = niceness_of_session(os.getpid())
    assert told(before=0, is_own_session=False) == (max(CATCHING_UP, os.nice(0)), ours)
    assert niceness_of_session(os.getpid()) == ours
