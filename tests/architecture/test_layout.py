"""The five packages are what they look like on disk: imported from here, typed, and nothing else in the wheel."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ray_jobs", "tasks", "evaluation", "deepspeed_configs", "fulltune")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_loads_from_this_repository(name: str) -> None:
    """`tasks` and `evaluation` are also distributions of other people: one of those in site-packages would win."""
    file = importlib.import_module(name).__file__
    assert file is not None
    assert Path(file).resolve() == (ROOT / name / "__init__.py").resolve()


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_is_typed(name: str) -> None:
    assert (ROOT / name / "py.typed").is_file()


def test_no_package_under_tests() -> None:
    """tests/tasks/__init__.py would shadow the real `tasks`."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_pytest_sees_the_real_environment() -> None:
    """With `pythonpath` the test above could not see a foreign package; `prepend` mode rejects equal file names."""
    options = PYPROJECT["tool"]["pytest"]["ini_options"]
    assert "pythonpath" not in options
    assert "--import-mode=importlib" in options["addopts"]


def test_the_version_has_one_value() -> None:
    assert importlib.import_module("fulltune").__version__ == PYPROJECT["project"]["version"]


def test_every_requirement_is_pinned() -> None:
    """Whatever pyproject.toml asks for has its exact version in constraints.txt, without paths or local suffixes."""
    lines = [ln for ln in (ROOT / "constraints.txt").read_text().splitlines() if ln and not ln.startswith("#")]
    pins = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
        assert match, f"constraints.txt: {line!r} is not name==version"
        pins[normalised(match[1])] = match[2]
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    wanted = [*PYPROJECT["project"]["dependencies"], *(requirement for extra in extras for requirement in extra)]
    missing = [w for w in wanted if normalised(re.split(r"[\[<>=~!; ]", w)[0]) not in pins]
    assert not missing


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.slow
@pytest.mark.extended
def test_the_wheel_holds_the_five_packages_and_their_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, timeout=280)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in inside} == set(PACKAGES)
    on_disk = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == on_disk
    assert {"deepspeed_configs/zero2.json", "ray_jobs/recipes/demo.yaml", "fulltune/py.typed"} <= inside


def test_the_readme_tree_exists() -> None:
    """Every path in the README's picture of the tree is there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    trees = [block for block in blocks if all(re.search(rf"^\W*{name}/", block, re.MULTILINE) for name in PACKAGES)]
    assert len(trees) == 1, f"{len(trees)} code blocks in README.md show the five packages, wanted one"
    shown = list(paths_of(trees[0]))
    assert len(shown) >= len(PACKAGES)
    missing = [path for path in shown if not list(ROOT.glob(path))]
    assert not missing


def paths_of(tree: str) -> Iterator[str]:
    """The paths of an indented listing: names (several per line, globs allowed), two spaces or `#`, a remark."""
    parents: list[tuple[int, str]] = []
    for line in tree.splitlines():
        match = re.match(r"([\s│├└─|`-]*)((?:\S+ ?)*?\S+)(?:\s{2,}.*|\s+#.*)?$", line)
        if not match or match[2] in ("...", "#"):
            continue
        depth = len(match[1])
        parents = [(at, name) for at, name in parents if at < depth]
        prefix = "".join(name for _, name in parents)
        names = [name.rstrip(",") for name in match[2].split() if name != "..."]
        for name in names:
            yield prefix + name.rstrip("/")
        if len(names) == 1 and names[0].endswith("/"):
            parents.append((depth, names[0]))


def test_the_tree_reader_reads_trees() -> None:
    tree = "\n".join(
        [
            "ray_jobs/            runs, joins",
            "  cli.py train.py    commands",
            "  recipes/*.yaml     recipes",
            "Makefile  x",
        ]
    )
    assert list(paths_of(tree)) == [
        "ray_jobs",
        "ray_jobs/cli.py",
        "ray_jobs/train.py",
        "ray_jobs/recipes/*.yaml",
        "Makefile",
    ]
    drawn = "fulltune/\n├── engine/  # deepspeed\n│   └── core.py\n└── train.py  # the loop"
    assert list(paths_of(drawn)) == ["fulltune", "fulltune/engine", "fulltune/engine/core.py", "fulltune/train.py"]
