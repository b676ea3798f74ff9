"""The benchmarks are programs that work: some of them run, briefly, and say their figures.

How fast it was is not judged here: tests run on machines that are busy with other things.
"""

import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT_SECONDS = 280

pytestmark = pytest.mark.timeout(TIMEOUT_SECONDS + 20)


def test_the_append_benchmark_runs_and_compares_itself_with_its_baseline() -> None:
    said = ran("append")
    assert "64 senders: " in said
    assert "baseline" in said


def test_the_stream_benchmark_runs_and_nothing_is_missing_or_doubled() -> None:
    said = ran("stream")
    assert "receipts missing: 0 " in said
    assert said.count("out of order or twice: 0 ") == 2


def test_the_benchmark_of_sending_runs_and_compares_sockets_with_http() -> None:
    said = ran("sending")
    assert "64 senders over sockets, 8 at a time each, beside HTTP: " in said
    assert "one sender over its socket" in said


def ran(name: str) -> str:
    """What it printed."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", name, "--quick"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout
