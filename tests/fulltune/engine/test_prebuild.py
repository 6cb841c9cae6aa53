"""Workers never build the communication op and never wait for its lock: each case runs in a process with a bound."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fulltune import setup

ROOT = Path(setup.__file__).parents[1]
WORKER = """
from fulltune.engine import prebuild
print("attached", prebuild.attach())
import deepspeed, deepspeed.comm.comm as comm
deepspeed.init_distributed("gloo", verbose=False)
print("op", comm.cdb.shm_comm_op is not None)
"""


def run_worker(extensions: Path, **environment: str) -> str:
    """What a single CPU worker prints; fails the test after a minute of waiting."""
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    env = {**os.environ, **rank, "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(extensions), **environment}
    return subprocess.run(
        [sys.executable, "-c", WORKER], env=env, cwd=ROOT, timeout=60, check=True, capture_output=True, text=True
    ).stdout


def locked(extensions: Path) -> Path:
    """The folder with a lock file that nobody will ever remove: torch's own loader would wait on it for ever."""
    op = extensions / setup.OP_NAME
    op.mkdir(parents=True, exist_ok=True)
    (op / "lock").touch()
    return extensions


def test_without_the_op_a_worker_uses_gloo_at_once(tmp_path: Path) -> None:
    said = run_worker(locked(tmp_path))
    assert "attached gloo" in said
    assert "op False" in said
    assert [p.name for p in (tmp_path / setup.OP_NAME).iterdir()] == ["lock"]


def test_the_prebuilt_op_loads_without_lock_ninja_or_compiler(tmp_path: Path) -> None:
    built = setup.extensions_dir()
    if not setup.is_ready(built):
        pytest.skip(f"the op is not built in {built}: python -m fulltune.setup")
    shutil.copytree(built / setup.OP_NAME, tmp_path / setup.OP_NAME)
    said = run_worker(locked(tmp_path), CXX="no-such-compiler", PATH=str(tmp_path))
    assert "attached shm" in said
    assert "op True" in said
