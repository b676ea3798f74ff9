"""The benchmarks are programs that work: the append benchmark runs, briefly, and says its figures.

How fast it was is not judged here: tests run on machines that are busy with other things.
"""

import subprocess
import sys
from pathlib import Path

TIMEOUT_SECONDS = 110


def test_the_append_benchmark_runs_and_compares_itself_with_its_baseline() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "append", "--quick"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "64 senders: " in finished.stdout
    assert "baseline" in finished.stdout
