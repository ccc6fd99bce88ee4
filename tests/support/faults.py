"""
Which tests show what comes of which fault of docs/faults.md: those that are marked with its id.

`@pytest.mark.fault("P1")` on a test, or in a module's `pytestmark` for all of it. The marks are
read from the source, so that no suite has to be collected, and one that needs a control plane
counts where there is none.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

__all__ = ["ROW", "marked", "with_tests"]

ROW: Final = re.compile(r"^(\| (?P<id>[A-Z]\d+) \|.*\|)[^|]*\|$", re.MULTILINE)
"""A row of the table; its last column is what is generated."""


def marked(tests: Path) -> dict[str, list[str]]:
    """Return the tests of each fault, as the table names them, in the order of their files."""
    found: dict[str, list[str]] = {}
    for path in sorted(tests.rglob("test_*.py")):
        name = path.relative_to(tests).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for fault in _of_module(tree):
            found.setdefault(fault, []).append(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                for fault in _ids(*node.decorator_list):
                    found.setdefault(fault, []).append(f"{name}::{node.name}")
    return found


def with_tests(page: str, tests: Mapping[str, list[str]]) -> str:
    """Return the page with the last column of each row as the marks have it."""

    def row(match: re.Match[str]) -> str:
        names = ", ".join(f"`{name}`" for name in tests.get(match["id"], ()))
        return f"{match[1]} {names or '(no test)'} |"

    return ROW.sub(row, page)


def _of_module(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            yield from _ids(node.value)


def _ids(*expressions: ast.expr) -> Iterator[str]:
    """Yield the ids of the marks in expressions."""
    for expression in expressions:
        for node in ast.walk(expression):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                yield from (str(ast.literal_eval(argument)) for argument in node.args)
