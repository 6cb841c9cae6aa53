"""Fixtures and options shared by all tests: the real data sets and the golden files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden (`make golden`)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests that read real data; under --update-golden only those that own a golden file run."""
    fixtures = {item: getattr(item, "fixturenames", ()) for item in items}
    for item in items:
        if "real_data" in fixtures[item]:
            item.add_marker("real_data")
    if config.getoption("--update-golden"):
        others = [item for item in items if "golden" not in fixtures[item]]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if "golden" in fixtures[item]]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets named by FULLTUNE_DATA; skips without it, fails if FULLTUNE_REQUIRE_DATA=1."""
    folder = os.environ.get("FULLTUNE_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    reason = f"FULLTUNE_DATA is {folder!r}, not a folder with the real data sets"
    if os.environ.get("FULLTUNE_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden(name, text): `text` equals tests/golden/<name>, to the character. `make golden` rewrites the files."""
    update = request.config.getoption("--update-golden")

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        wanted = path.read_text(encoding="utf-8") if path.exists() else ""
        diff = "\n".join(difflib.unified_diff(wanted.splitlines(), text.splitlines(), "golden", "now", lineterm=""))
        assert text == wanted, f"{path.name} differs; if that is meant, run `make golden`:\n{diff}"

    return compare
