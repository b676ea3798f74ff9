"""Full collections go over what came since a process stood, not over what it is made of."""

import subprocess
import sys

MAX_LOOKED_AT = 1_000

PROGRAM = """
import gc
import api.app
from infra import garbage

before = len(gc.get_objects())
garbage.settle()
print(before, len(gc.get_objects()))
"""


def test_what_a_process_is_made_of_is_not_looked_at_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    before, after = map(int, done.stdout.split())
    assert before > 10 * MAX_LOOKED_AT
    assert after < MAX_LOOKED_AT
