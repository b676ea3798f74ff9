"""The house style that no linter checks: lengths, complete tables, golden files, words, SQL."""

import ast
import re
import statistics
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

import commands
import projections
from commands.command import Command
from domain import EVENTS
from domain.event import Event, Place
from domain.state import aggregate_of
from tests.commands.history import FIRST_TIME
from tests.golden.examples import DIRECTORY, EXAMPLES, golden_file

ROOT = Path(__file__).parent.parent
PACKAGES = ("domain", "commands", "projections", "infra", "api")
FILES = [
    *PACKAGES,
    "migrations",
    "tests",
    "LICENSE",
    "Makefile",
    "README.md",
    "CHANGELOG.md",
    "pyproject.toml",
    "requirements.txt",
    "requirements-test.txt",
    "requirements-tracing.txt",
]

MEDIAN_LINES = 6
USUAL_LINES = 20
USUAL_SHARE = 0.9
MAX_LINES = 60
MAX_DOCSTRING_LINES = 20

# Said of what a class does not know about itself.
VAGUE = re.compile(r"(Manager|Service|Helper|Utils?)$")
SQL = re.compile(
    r"\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER|DROP|TRUNCATE|COPY|MERGE INTO|SET|"
    r"WITH|LOCK|GRANT|VACUUM|ANALYZE)\s"
)


class Function(NamedTuple):
    name: str
    lines: int


def modules(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
            yield Function(f"{name(path)}:{node.lineno} {node.name}", lines)


ALL_FUNCTIONS = [function for path in modules(*PACKAGES) for function in functions(path)]
CODE = modules(*PACKAGES, "migrations", "tests")


def test_no_function_is_longer_than_a_screen() -> None:
    assert [one for one in ALL_FUNCTIONS if one.lines > MAX_LINES] == []


def test_functions_are_small() -> None:
    lines = [one.lines for one in ALL_FUNCTIONS]
    assert statistics.median(lines) <= MEDIAN_LINES
    assert sum(one < USUAL_LINES for one in lines) >= USUAL_SHARE * len(lines)


@pytest.mark.parametrize("path", CODE, ids=name)
def test_every_module_says_what_it_is(path: Path) -> None:
    words = ast.get_docstring(tree(path)) or ""
    assert words
    assert len(words.splitlines()) <= MAX_DOCSTRING_LINES


@pytest.mark.parametrize("path", modules(*PACKAGES), ids=name)
def test_no_class_has_a_vague_name(path: Path) -> None:
    classes = [node.name for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    assert [one for one in classes if VAGUE.search(one)] == []


@pytest.mark.parametrize("path", modules(*PACKAGES), ids=name)
def test_sql_is_a_literal(path: Path) -> None:
    """An f-string that begins like a statement, or one that is added or formatted to."""
    assert [line for line, text in composed_text(tree(path)) if SQL.match(text)] == []


def composed_text(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Where text is made of parts, and what its first literal part is."""
    for node in ast.walk(module):
        match node:
            case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
                yield node.lineno, text
            case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Add() | ast.Mod()):
                yield node.lineno, text
            case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
                yield node.lineno, text


def test_composed_sql_is_found_where_it_is() -> None:
    composed = ast.parse('f"SELECT {x}"\n"UPDATE t " + x\n"DROP %s" % x\n"SET {}".format(x)')
    assert len([text for _, text in composed_text(composed) if SQL.match(text)]) == 4
    plain = ast.parse('"SELECT 1"\nf"{x} SELECT"\nf"created {x}"')
    assert [text for _, text in composed_text(plain) if SQL.match(text)] == []


def test_the_top_level_holds_what_it_should() -> None:
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    found = [path.name for path in ROOT.iterdir() if not path.name.startswith(".")]
    assert [
        one for one in found if one not in FILES and not any(fnmatch(one, i) for i in ignored)
    ] == []
    assert [one for one in FILES if one not in found] == []


# The tables


def camel(stem: str) -> str:
    return "".join(word.capitalize() for word in stem.split("_"))


COMMAND_FILES = [
    path
    for path in modules("commands")
    if any(isinstance(node, ast.FunctionDef) and node.name == "decide" for node in tree(path).body)
]


def test_every_command_file_is_in_the_table_under_its_name() -> None:
    table = {
        handler.name: (handler.command.__name__, handler.decide.__module__)
        for handler in (*commands.HANDLERS, *commands.INTERNAL)
    }
    assert table == {
        path.stem.replace("_", "-"): (camel(path.stem), f"commands.{path.stem}")
        for path in COMMAND_FILES
    }
    assert len(commands.BY_NAME) == len(commands.HANDLERS)
    assert len(commands.BY_TYPE) == len(commands.HANDLERS) + len(commands.INTERNAL)


def test_every_command_there_is_is_in_the_table() -> None:
    assert set(Command.__subclasses__()) == set(commands.BY_TYPE)


def test_every_event_there_is_is_in_the_table_once() -> None:
    assert set(concrete(Event)) == set(EVENTS)
    assert len({(event.type, event.version) for event in EVENTS}) == len(EVENTS)


def concrete(event: type[Event]) -> Iterator[type[Event]]:
    for child in event.__subclasses__():
        if "type" in vars(child):
            yield child
        yield from concrete(child)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_an_event_is_named_and_kept_by_the_rules(event: type[Event]) -> None:
    assert camel(event.type) == event.__name__
    assert event.__struct_config__.frozen
    assert golden_file(event).exists()


def test_a_golden_file_is_never_of_an_event_that_nobody_knows() -> None:
    known = {golden_file(event) for event in EVENTS}
    assert {path for path in DIRECTORY.iterdir() if path.suffix == ".json"} >= known
    types = {event.type for event in EVENTS}
    assert {path.name.partition(".")[0] for path in DIRECTORY.iterdir()} == types


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda event: event.type)
def test_every_event_is_folded_by_an_aggregate(example: Event) -> None:
    aggregate = aggregate_of(example.stream)
    folded = aggregate.evolve(aggregate.initial, example, Place(1, FIRST_TIME))
    assert type(folded) is type(aggregate.initial)


def test_every_projection_file_is_in_the_table_under_its_name() -> None:
    files = {
        path.stem
        for path in modules("projections")
        if any(is_named(node, "PROJECTION") for node in tree(path).body)
    }
    assert {projection.name for projection in projections.PROJECTIONS} == files


def is_named(node: ast.stmt, wanted: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == wanted for target in targets)
