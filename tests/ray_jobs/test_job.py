"""`ray job submit` against an authenticated head that somebody started by hand, from a clone that is not installed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[2]
RAY = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
OVERRIDES = ["train.max_steps=6", "checkpoint.every_steps=3", "validation.every_steps=3", "report.limit=4"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Environment and dashboard address of a head with token authentication; stopped by its own process ids."""
    folder = tmp_path_factory.mktemp("head")
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    port, dashboard = free_port(), free_port()
    command = [RAY, "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    # two clusters on one machine must not share the port on which the agent takes jobs
    command += [
        f"--dashboard-agent-listen-port={free_port()}",
        "--block",
        "--disable-usage-stats",
        f"--temp-dir={Path('/tmp') / secrets.token_hex(4)}",
    ]
    log = folder / "head.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait(lambda: _listens(dashboard) and "Ray runtime started" in log.read_text(), 120, log)
        # the agent that runs jobs starts after the dashboard answers
        trial = [RAY, "job", "submit", "--no-wait", "--address", address, "--", "true"]
        _wait(lambda: subprocess.run(trial, env=environment, capture_output=True).returncode == 0, 180, log)
        yield environment, address
    finally:
        process.terminate()
        process.wait(timeout=60)


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(condition, bound_s, log):
    import time

    deadline = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.2)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The tracked files of this tree, as a user's checkout."""
    folder = tmp_path_factory.mktemp("clone")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, tracked.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return folder


def test_ray_job_submit_ends_succeeded(head, clone, tmp_path):
    environment, address = head
    command = [RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", "python", "-m", "ray_jobs.train"]
    done = subprocess.run(
        [*command, "demo", f"ray.storage_path={tmp_path}", *OVERRIDES],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout.lower()
    assert (tmp_path / "demo" / "report" / "report.html").exists()
    facts = json.loads((tmp_path / "demo" / "provenance.json").read_text())
    assert facts["git"] is None, "the code must come from the upload, which has no .git, not from this checkout"


def test_without_the_token_nobody_gets_in(head, clone):
    environment, address = head
    stranger = environment | {"RAY_AUTH_TOKEN_PATH": "/nonexistent", "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(
        [RAY, "job", "list", "--address", address], env=stranger, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0


def test_submit_returns_the_jobs_own_exit_code(head, tmp_path):
    environment, address = head
    command = [sys.executable, "-m", "ray_jobs.cli", "submit", "demo", "--address", address, "--wait"]
    done = subprocess.run(
        [*command, f"ray.storage_path={tmp_path}", "ray.num_workers=50"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert "ray.num_workers=50" in done.stdout
