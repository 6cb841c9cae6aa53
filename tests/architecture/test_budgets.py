"""Budgets that keep the code readable: lengths, module docstrings, and errors that show the value they are about."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("ray_jobs", "tasks", "evaluation", "deepspeed_configs", "fulltune", "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 400
MIN_SHARE_OF_RAISES_WITH_VALUE = 0.9


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def long_functions(tree: ast.AST) -> list[str]:
    return [
        f"{node.name}, line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]


def raises(tree: ast.AST) -> Iterator[tuple[int, bool]]:
    """(line, whether the message is made with a value) of every `raise Error(...)`; re-raising is left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            arguments = [*node.exc.args, *(keyword.value for keyword in node.exc.keywords)]
            parts = [part for argument in arguments for part in ast.walk(argument)]
            yield node.lineno, any(isinstance(part, (ast.FormattedValue, ast.Name)) for part in parts)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_stays_within_its_budget(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text.count("\n") <= MAX_FILE_LINES
    assert long_functions(tree) == []
    assert ast.get_docstring(tree), (
        f"{name_of(path)} has no module docstring: what it is and where it stands in the flow"
    )


def test_errors_show_the_value_they_are_about() -> None:
    found = [
        (f"{name_of(path)}:{line}", shows) for path in FILES for line, shows in raises(ast.parse(path.read_text()))
    ]
    without = [place for place, shows in found if not shows]
    assert len(found) >= 20
    assert len(without) <= (1 - MIN_SHARE_OF_RAISES_WITH_VALUE) * len(found), without


def test_the_measures_measure() -> None:
    long = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
    assert long_functions(ast.parse(long)) == ["f, line 1"]
    assert long_functions(ast.parse("def f():\n    pass")) == []
    source = "raise A('fixed')\nraise A(f'got {x}')\nraise A(got=f'{x}', wanted='y')\nraise\nraise a\nraise A()"
    assert [shows for _, shows in raises(ast.parse(source))] == [False, True, True, False]
