"""The table of rules in README.md here and these tests name one another."""

import ast
import re
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
TABLES = (HERE / "README.md").read_text()


def there() -> list[str]:
    return [
        node.name
        for path in sorted(HERE.glob("test_*.py"))
        if path != Path(__file__)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    ]


def test_every_test_in_the_table_exists_and_every_test_is_in_it() -> None:
    named = Counter(re.findall(r"`(test_\w+)`", TABLES))
    assert sorted(named.elements()) == sorted(there())


def test_every_rule_has_a_test() -> None:
    rows = [line for line in TABLES.splitlines() if line.startswith("| ")]
    end = next(n for n, row in enumerate(rows) if row.startswith("| data model |"))
    assert [row for row in rows[1:end] if "`test_" not in row] == []
