"""The import contracts of pyproject.toml hold, and each of them breaks when it should."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ray_jobs", "tasks", "evaluation", "deepspeed_configs", "fulltune")


def lint_imports(folder: Path) -> tuple[int, str]:
    """Exit code and report of import-linter over the packages in `folder`."""
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as c; c()",
        "--no-logo",
        "--no-cache",
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages to plant mistakes in."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_the_contracts_hold() -> None:
    code, report = lint_imports(ROOT)
    assert code == 0, report
    assert "9 kept, 0 broken" in report


@pytest.mark.parametrize(
    ("package", "planted", "contract"),
    [
        ("fulltune", "import evaluation", "imports point one way"),
        ("tasks", "import deepspeed_configs", "imports point one way"),
        ("fulltune", "import ray", "ray only in ray_jobs"),
        ("ray_jobs", "import deepspeed", "deepspeed only in fulltune.engine"),
        ("fulltune", "def late():\n    import deepspeed", "deepspeed only in fulltune.engine"),
        ("evaluation", "from openai import OpenAI", "openai only in evaluation.baselines"),
        ("fulltune", "import vllm", "vllm only in fulltune.offline_vllm"),
        ("tasks", "import torch", "tasks and deepspeed_configs stay pure"),
        ("tasks", "import datasets", "datasets only in tasks.origins"),
        ("evaluation", "import torch", "evaluation needs no accelerator"),
    ],
)
def test_a_planted_import_is_found(copy: Path, package: str, planted: str, contract: str) -> None:
    mistake = copy / package / "planted.py"
    mistake.write_text(planted + "\n")
    try:
        code, report = lint_imports(copy)
    finally:
        mistake.unlink()
    assert code == 1, report
    broken = [line for line in report.splitlines() if " BROKEN" in line]
    assert any(line.startswith(contract) for line in broken), report
