"""The audit of dependencies finds what there is to find, with pip-audit and a feed that answers."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import audit

NOBODY = "http://127.0.0.1:1/v1/query"
BAD = "msgspec"
VULNERABILITY = {
    "id": "GHSA-test",
    "summary": "it is only a test",
    "affected": [
        {
            "package": {"name": BAD, "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}],
        }
    ],
}
RUN_SECONDS = 120.0


class Feed(BaseHTTPRequestHandler):
    """Answers as OSV does, of one vulnerable package."""

    bad: str = ""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        is_bad = asked["package"]["name"] == self.bad
        answer = json.dumps({"vulns": [VULNERABILITY]} if is_bad else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def feed(bad: str) -> Iterator[str]:
    handler = type("OneFeed", (Feed,), {"bad": bad})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()
            thread.join()


def run(url: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.audit", "--feed", url],
        cwd=audit.ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )


def test_a_vulnerable_version_fails_the_check_and_is_named() -> None:
    with feed(BAD) as url:
        done = run(url)
    version = dict(audit.pins(audit.PINS))[BAD]
    assert f"{BAD} {version} has GHSA-test, mended by 99.1" in done.stderr
    assert done.returncode == 1


def test_every_pinned_version_is_looked_up() -> None:
    with feed("") as url:
        done = run(url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"audit: {len(dict(audit.pins(audit.PINS)))} pinned versions looked up\n"


def test_a_feed_that_does_not_answer_is_told_of_and_fails_only_what_requires_it() -> None:
    done = run(NOBODY)
    assert "NOT looked up" in done.stderr
    assert done.returncode == 0
    assert run(NOBODY, AUDIT=audit.REQUIRED).returncode == 1


def test_what_is_installed_and_not_what_is_pinned_is_named() -> None:
    found = {"a": "1", "b": "2", "c": "3", "debugger": "1"}
    assert list(audit.differences({"a": "1", "b": "1"}, found, {"a", "c"})) == [
        "b is pinned to 1, and 2 is installed",
        "c 3 is needed and not pinned",
    ]


def test_what_pinned_packages_need_is_known() -> None:
    assert {"msgpack", "requests"} <= audit.needed({"cachecontrol"})


def test_what_was_not_looked_up_is_no_pass() -> None:
    report = audit.Report([audit.Dependency("a", "1"), audit.Dependency("b", skip_reason="no")])
    assert list(audit.vulnerable(report, {"a": "1", "b": "1", "c": "1"})) == ["not looked up: b, c"]


@pytest.mark.parametrize("line", ["msgspec", "msgspec>=1", "git+https://example.test/x"])
def test_a_requirement_that_is_no_pin_is_an_error(tmp_path: Path, line: str) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(f"a==1\n{line}\n")
    with pytest.raises(ValueError, match="not pinned to one version"):
        list(audit.pins(file))
