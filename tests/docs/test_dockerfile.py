"""The Dockerfile repeats versions of constraints.txt and names of pyproject.toml; they must stay the same ones.

No image was built here: there is no container engine. These tests read the text.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
CODE = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"
)


@pytest.mark.parametrize("package", ["torch", "deepspeed"])
def test_pins_are_those_of_the_constraints(package: str) -> None:
    assert re.search(rf"^ARG {package.upper()}=(\S+)$", CODE, re.M).group(1) == PINS[package]
    assert f'"{package}==${{{package.upper()}}}' in CODE


def test_every_pip_install_is_constrained() -> None:
    installs = re.findall(r"pip install (?:\\\n|[^\n&])+", CODE)
    assert len(installs) == 5
    assert all("-c /tmp/constraints.txt" in install for install in installs)


def test_the_base_is_pinned_and_agrees_with_torchs_build() -> None:
    """torch's CUDA wheels name the toolkit's major and minor version; the base image must have the same."""
    base = re.search(r"^FROM nvidia/cuda:(\d+)\.(\d+)\.\d+-devel-ubuntu24\.04$", CODE, re.M)
    assert base is not None
    wheel = f"cu{base[1]}{base[2]}"
    assert f"whl/{wheel} " in CODE
    assert f"+{wheel}" in CODE


def test_python_is_one_the_project_takes() -> None:
    """Ubuntu 24.04 has Python 3.12."""
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert "python3-venv" in CODE


def test_the_ops_that_the_engine_asks_for_are_prebuilt() -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder, CPUAdamBuilder, FusedAdamBuilder

    for builder in (CPUAdamBuilder, FusedAdamBuilder, AsyncIOBuilder):
        assert f"{builder.BUILD_VAR}=1" in CODE
    assert "DS_ACCELERATOR=cuda" in CODE


def test_it_runs_the_command_and_not_as_root() -> None:
    entry = re.search(r'^ENTRYPOINT \["(\w+)"\]$', CODE, re.M).group(1)
    assert entry in PROJECT["project"]["scripts"]
    assert CODE.index("USER fulltune") < CODE.index("ENTRYPOINT")
    assert CODE.rindex("pip install") < CODE.index("USER fulltune")


def test_the_context_holds_what_the_wheel_needs_and_nothing_more() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    packages = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    named = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml", "constraints.txt"}
    assert kept == packages | named
    assert all((ROOT / name).exists() for name in kept)
    assert any(fnmatch.fnmatch("fulltune/__pycache__", line) for line in lines)


def test_extras_exist() -> None:
    extras = re.search(r'"/src\[([\w,]+)\]"', CODE).group(1).split(",")
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
