"""`messenger up`: what an operator may do to it, and what may happen to it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg
import pytest

from infra.embedded.process import free_port

pytestmark = [
    pytest.mark.skipif(find_spec("api.cli") is None, reason="there is no command line yet"),
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc"),
]

READY_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 60.0
GONE_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.02
COMMAND = [sys.executable, "-m", "api.cli", "up"]
# What a process shows among its metrics once it has begun its work.
BEGUN = re.compile(
    r'^messenger_(?:projector_position\{process="(?P<projector>[^"]+)"'
    r'|(?:relay_leads|upkeep_round_timestamp_seconds)\{process="(?P<process>[^"]+)"\} [1-9])',
    re.MULTILINE,
)
SERVERS = ("postgres", "nats", "s3")


class Running:
    """One `messenger up`."""

    command = COMMAND
    environ: Mapping[str, str] = MappingProxyType({})

    def __init__(self, directory: Path, *arguments: str, **variables: str) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [*self.command, "--data-dir", str(directory), *(arguments or ("--port", "0"))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env={
                **os.environ,
                **self.environ,
                **{f"MESSENGER_{name}": value for name, value in variables.items()},
            },
        )

    @property
    def run(self) -> Any:
        return json.loads((self.directory / "run.json").read_text())

    def until_ready(self) -> Any:
        until(lambda: self._is_ready() or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()
        return self.run

    def _is_ready(self) -> bool:
        """A killed one leaves its run.json behind, with processes that are gone."""
        try:
            return all(is_alive(pid) for pid in self.run["pids"].values())
        except FileNotFoundError:
            return False

    def ended(self) -> tuple[int, str]:
        """Its exit code and what it said on stderr."""
        _, errors = self.process.communicate(timeout=STOP_TIMEOUT_SECONDS)
        return self.process.returncode, errors

    def stopped_by(self, *signals: signal.Signals) -> tuple[int, str]:
        for number in signals:
            self.process.send_signal(number)
        return self.ended()


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Running] = []

    def begin(directory: Path, *arguments: str, **variables: str) -> Running:
        started.append(Running(directory, *arguments, **variables))
        return started[-1]

    yield begin
    for up in started:
        if up.process.poll() is None:
            up.stopped_by(signal.SIGTERM)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for all tests that leave it as whole as it was: it stands what each of them does."""
    up = Running(tmp_path_factory.mktemp("lasting"))
    try:
        up.until_ready()
        yield up
    finally:
        code, errors = up.stopped_by(signal.SIGTERM)
    assert code == 0, errors


def until(is_so: Callable[[], bool], timeout_seconds: float = READY_TIMEOUT_SECONDS) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not so within {timeout_seconds:g} s"
        time.sleep(POLL_SECONDS)


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def children_of(pid: int) -> set[int]:
    """Every process below it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def answer(url: str) -> int:
    with urllib.request.urlopen(url, timeout=READY_TIMEOUT_SECONDS) as response:
        return int(response.status)


def is_ready(api_url: str) -> bool:
    try:
        return answer(f"{api_url}/health/ready") == 200
    except OSError:
        return False


def all_have_begun(run: Any) -> bool:
    """One that still loads ends, and is started again, where PostgreSQL is away."""
    try:
        with urllib.request.urlopen(f"{run['api_url']}/metrics", timeout=10) as response:
            page = response.read().decode()
    except OSError:
        return False
    begun = {found["projector"] or found["process"] for found in BEGUN.finditer(page)}
    ours = {name for name in run["pids"] if name not in SERVERS and not name.startswith("api")}
    return begun >= ours


def test_it_says_where_everything_is_and_keeps_it_private(lasting: Running) -> None:
    run = lasting.until_ready()
    # An API that another test ended may not have all that it needs yet.
    until(lambda: is_ready(run["api_url"]))
    assert {"postgres", "nats", "s3", "relay", "project-users", "api", "maintain"} <= set(
        run["pids"]
    )
    assert all(is_alive(pid) for pid in run["pids"].values())
    assert (lasting.directory / "run.json").stat().st_mode & 0o777 == 0o600


def test_what_catches_up_gives_way_to_what_answers(lasting: Running) -> None:
    pids = lasting.until_ready()["pids"]
    ours = os.getpriority(os.PRIO_PROCESS, 0)

    def behind() -> set[str]:
        return {name for name, pid in pids.items() if os.getpriority(os.PRIO_PROCESS, pid) > ours}

    catching_up = {name for name in pids if name.startswith("project-")}
    # One that another test ended may still be loading.
    until(lambda: behind() >= catching_up)
    assert behind() == catching_up


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGTERM,),
        (signal.SIGINT,),
        (signal.SIGINT, signal.SIGINT, signal.SIGTERM),
    ],
    ids=lambda signals: "+".join(number.name for number in signals),
)
def test_a_signal_stops_everything(
    start: Start, tmp_path: Path, signals: tuple[signal.Signals, ...]
) -> None:
    up = start(tmp_path)
    pids = up.until_ready()["pids"]
    below = children_of(up.process.pid)
    assert len(below) > 8
    code, errors = up.stopped_by(*signals)
    assert (code, errors) == (0, "")
    assert not any(map(is_alive, pids.values()))
    # The kernel ends what a child has started that had to be killed itself.
    until(lambda: not any(map(is_alive, below)), GONE_TIMEOUT_SECONDS)
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("after_seconds", [0.7, 1.0, 1.5, 2.5])
def test_a_signal_during_the_start_stops_everything(
    start: Start, tmp_path: Path, after_seconds: float
) -> None:
    up = start(tmp_path)
    until((tmp_path / "lock").exists)
    time.sleep(after_seconds - 0.5)
    below = children_of(up.process.pid)
    assert up.stopped_by(signal.SIGTERM) == (0, "")
    until(lambda: not any(map(is_alive, below)), GONE_TIMEOUT_SECONDS)
    again = start(tmp_path)
    again.until_ready()


def test_a_second_one_on_the_directory_is_refused_and_the_first_goes_on(
    start: Start, lasting: Running
) -> None:
    directory, pid = lasting.directory, lasting.process.pid
    run = lasting.until_ready()
    until(lambda: is_ready(run["api_url"]))
    code, errors = start(directory).ended()
    assert code == 1
    assert errors == f"messenger up: data directory {directory} is in use by process {pid}\n"
    assert lasting.run == run
    assert answer(f"{run['api_url']}/health/ready") == 200


def test_a_port_in_use_is_named_and_nothing_is_started(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, errors = start(tmp_path, "--port", str(port)).ended()
    assert code == 1
    assert errors == f"messenger up: port {port} on 127.0.0.1 is in use by another process\n"
    assert not (tmp_path / "postgres").exists()


@pytest.mark.parametrize(
    "variables",
    [
        {"DATABASE_URL": "postgresql://u:hidden@127.0.0.1:PORT/x"},
        {"NATS_URL": "nats://127.0.0.1:PORT"},
        {
            "S3_ENDPOINT": "http://127.0.0.1:PORT",
            "S3_ACCESS_KEY": "access",
            "S3_SECRET_KEY": "hidden",
        },
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_a_given_server_that_is_not_there_is_named(
    start: Start, tmp_path: Path, variables: dict[str, str]
) -> None:
    given = {name: url.replace("PORT", str(free_port())) for name, url in variables.items()}
    code, errors = start(tmp_path, **given).ended()
    assert code == 1
    assert errors.startswith(f"messenger up: MESSENGER_{next(iter(variables))}=")
    assert "can not be reached" in errors
    assert "hidden" not in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "postgres").exists()


def test_a_wrong_setting_is_named_in_one_line(start: Start, tmp_path: Path) -> None:
    code, errors = start(tmp_path / "new", PORTT="1").ended()
    assert (code, errors.count("\n")) == (1, 1)
    assert "MESSENGER_PORTT is not a setting: did you mean MESSENGER_PORT?" in errors


@pytest.mark.parametrize("name", ["relay", "project-messages", "api", "postgres", "nats", "s3"])
def test_a_killed_child_is_started_again(lasting: Running, name: str) -> None:
    run = lasting.until_ready()
    if name in SERVERS:
        until(lambda: all_have_begun(run))
    os.kill(run["pids"][name], signal.SIGKILL)
    until(lambda: lasting.run["pids"][name] != run["pids"][name])
    now = lasting.run
    assert is_alive(now["pids"][name])
    assert {**now, "pids": None} == {**run, "pids": None}
    assert {**now["pids"], name: None} == {**run["pids"], name: None}
    until(lambda: is_ready(now["api_url"]))


def test_no_connection_is_refused_while_the_api_restarts(lasting: Running) -> None:
    run = lasting.until_ready()
    os.kill(run["pids"]["api"], signal.SIGKILL)
    until(lambda: not is_alive(run["pids"]["api"]))
    assert answer(f"{run['api_url']}/health/live") == 200


def test_several_workers_share_the_port(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, "--port", "0", "--workers", "2").until_ready()
    assert {"api-1", "api-2"} <= set(run["pids"])
    assert "api" not in run["pids"]


def test_data_survives_a_stop_and_a_kill_of_everything(start: Start, tmp_path: Path) -> None:
    first = start(tmp_path)
    with psycopg.connect(first.until_ready()["database_url"]) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    first.stopped_by(signal.SIGTERM)

    second = start(tmp_path)
    second.until_ready()
    below = children_of(second.process.pid)
    second.stopped_by(signal.SIGKILL)

    third = start(tmp_path)  # at once: those of the second one may still be going
    until(lambda: not any(map(is_alive, below)))
    with psycopg.connect(third.until_ready()["database_url"]) as connection:
        row = connection.execute("SELECT n FROM kept").fetchone()
    assert row == (7,)


def test_a_log_that_went_back_while_all_was_stopped_gets_a_new_epoch(
    start: Start, tmp_path: Path
) -> None:
    """No `up` stands on it, so the command brings the servers that it needs."""
    directory = tmp_path / "data"
    up = start(directory)
    up.until_ready()
    assert up.stopped_by(signal.SIGTERM)[0] == 0
    copy(directory / "postgres", tmp_path / "earlier")
    up = start(directory)
    run = up.until_ready()
    register(run["api_url"], "anna")
    until(lambda: relayed(run["api_url"]) == 1)
    assert up.stopped_by(signal.SIGTERM)[0] == 0
    shutil.rmtree(directory / "postgres")
    copy(tmp_path / "earlier", directory / "postgres")
    done = new_epoch(directory)
    assert (done.returncode, done.stdout) == (0, "epoch 2 begins after position 0\n"), done.stderr
    up = start(directory)
    run = up.until_ready()
    register(run["api_url"], "anna")
    until(lambda: relayed(run["api_url"]) == 1)


def copy(source: Path, target: Path) -> None:
    """With its owner, which may be another than we."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True, timeout=STOP_TIMEOUT_SECONDS)


def new_epoch(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "api.cli", "log", "new-epoch", "--data-dir", str(directory)],
        capture_output=True,
        text=True,
        timeout=READY_TIMEOUT_SECONDS,
        check=False,
    )


def register(api_url: str, username: str) -> None:
    body = json.dumps({"username": username, "password": "correct horse battery"}).encode()
    request = urllib.request.Request(f"{api_url}/v1/commands/register-user", data=body)
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=READY_TIMEOUT_SECONDS) as response:
        assert response.status == 200


def relayed(api_url: str) -> int | None:
    try:
        with urllib.request.urlopen(f"{api_url}/v1/status", timeout=10) as response:
            position: int | None = json.load(response)["relay"]["position"]
            return position
    except OSError:
        return None  # a server that is slow to answer is asked again
