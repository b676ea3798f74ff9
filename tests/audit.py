"""`python -m tests.audit`: known vulnerabilities in what is pinned; part of `make check`.

Exit code 1 if any pinned version has one, with its name and the version that mends it; or if what
is pinned and what it needs or is installed differ, since then something else is audited than
runs. Where nobody answers who would know (a machine without internet), it says so and passes:
the rest of the check needs no internet either. A run that must not pass then has AUDIT=required.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Container, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

ROOT = Path(__file__).parent.parent
PINS = ROOT / "requirements-test.txt"  # which has requirements.txt in it
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)")
INCLUDED = re.compile(r"-r (?P<file>\S+)")
NOT_PINNED = frozenset({"pip", "setuptools"})  # they make the environment
NEEDED = re.compile(r"[A-Za-z0-9._-]+")
FEED = "https://api.osv.dev/v1/query"
ANSWER_SECONDS = 10
AUDIT_SECONDS = 300.0
REQUIRED = "required"


class Vulnerability(msgspec.Struct, frozen=True):
    id: str
    fix_versions: list[str]


class Dependency(msgspec.Struct, frozen=True):
    name: str
    version: str = ""
    vulns: list[Vulnerability] = []
    skip_reason: str = ""


class Report(msgspec.Struct, frozen=True):
    dependencies: list[Dependency]


class Audit(NamedTuple):
    """None for a report: nobody answered, and why is in `said`."""

    report: Report | None
    said: str


@click.command()
@click.option("--feed", default=FEED, show_default=True, help="An OSV query service.")
def main(feed: str) -> None:
    pinned = dict(pins(PINS))
    problems = list(differences(pinned, installed(), needed(pinned)))
    audit = audited(feed)
    if audit.report is not None:
        problems += vulnerable(audit.report, pinned)
        click.echo(f"audit: {len(audit.report.dependencies)} pinned versions looked up")
    else:
        click.echo(f"audit: NOT looked up, as the feed does not answer: {audit.said}", err=True)
        if os.environ.get("AUDIT") == REQUIRED:
            problems.append("the feed must answer, as AUDIT=required")
    for problem in problems:
        click.echo(f"audit: {problem}", err=True)
    sys.exit(1 if problems else 0)


def pins(file: Path) -> Iterator[tuple[str, str]]:
    """Normalised names and versions; ValueError for a line that is no pin."""
    lines = [line for one in files(file) for line in one.read_text().splitlines()]
    for line in lines:
        if pin := PIN.fullmatch(line):
            yield normal(pin["name"]), pin["version"]
        elif line.strip() and not INCLUDED.fullmatch(line):
            raise ValueError(f"{file.name}: not pinned to one version: {line}")


def files(file: Path) -> Iterator[Path]:
    """It and all that it includes, which pip-audit does not follow."""
    yield file
    for included in INCLUDED.finditer(file.read_text()):
        yield from files(file.with_name(included["file"]))


def normal(name: str) -> str:
    """As PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    return {normal(one.metadata["Name"]): one.version for one in metadata.distributions()}


def needed(pinned: Container[str]) -> set[str]:
    """What the pinned ones need beside themselves, whatever else is in the environment."""
    return {
        normal(found[0])
        for one in metadata.distributions()
        if normal(one.metadata["Name"]) in pinned
        for requirement in one.requires or ()
        if "extra ==" not in requirement and (found := NEEDED.match(requirement))
    }


def differences(
    pinned: dict[str, str], found: dict[str, str], wanted: Container[str]
) -> Iterator[str]:
    for name, version in sorted(found.items()):
        if name in pinned and pinned[name] != version:
            yield f"{name} is pinned to {pinned[name]}, and {version} is installed"
        elif name in wanted and name not in pinned and name not in NOT_PINNED:
            yield f"{name} {version} is needed and not pinned"


def vulnerable(report: Report, pinned: dict[str, str]) -> Iterator[str]:
    for one in report.dependencies:
        for found in one.vulns:
            mended = ", ".join(found.fix_versions) or "no version yet"
            yield f"{one.name} {one.version} has {found.id}, mended by {mended}"
    looked_up = {normal(one.name) for one in report.dependencies if not one.skip_reason}
    if missing := pinned.keys() - looked_up:
        yield f"not looked up: {', '.join(sorted(missing))}"


def audited(feed: str) -> Audit:
    """What pip-audit finds. Raises TimeoutExpired."""
    with tempfile.TemporaryDirectory(prefix="messenger-audit-") as cache:
        done = subprocess.run(
            _command(feed, cache),
            capture_output=True,
            text=True,
            timeout=AUDIT_SECONDS,
            check=False,
        )
    try:
        return Audit(msgspec.json.decode(done.stdout, type=Report), "")
    except msgspec.DecodeError:
        return Audit(None, (done.stderr.strip().splitlines() or ["nothing was said"])[-1])


def _command(feed: str, cache: str) -> list[str]:
    return [
        *(sys.executable, "-m", "pip_audit"),
        *(word for file in files(PINS) for word in ("--requirement", str(file))),
        *("--disable-pip", "--no-deps"),
        *("--vulnerability-service", "osv", "--osv-url", feed),
        *("--cache-dir", cache, "--timeout", str(ANSWER_SECONDS)),
        *("--format", "json", "--progress-spinner", "off"),
    ]


if __name__ == "__main__":
    main()
