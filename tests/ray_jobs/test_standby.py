"""Spare processes: asked for after a while, handed out by Ray, and never a reason for a run to fail."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_jobs import standby

ROOT = Path(__file__).resolve().parents[2]


def test_processes_import_before_they_are_given_work(monkeypatch):
    monkeypatch.delenv(standby._HOOK, raising=False)
    for use_gpu, name in ((False, "cpu"), (True, "gpu")):
        assert standby.environment(use_gpu=use_gpu) == {
            standby._HOOK: "ray_jobs.standby.load",
            standby._DEVICE: name,
        }


def test_a_hook_of_the_job_stays(monkeypatch):
    monkeypatch.setenv(standby._HOOK, "theirs.hook")
    assert standby.environment(use_gpu=False) == {}


@pytest.mark.parametrize(("on", "loaded"), [("cpu", ["a", "b"]), ("gpu", ["a"])])
def test_only_a_cpu_process_imports_what_asks_for_devices(monkeypatch, on, loaded):
    seen = []

    def note(module):
        seen.append(module)
        raise RuntimeError("an import that fails is the worker's to report")

    monkeypatch.setattr(standby.importlib, "import_module", note)
    monkeypatch.setattr(standby, "_ANY_DEVICE", ("a",))
    monkeypatch.setattr(standby, "_CPU_ONLY", ("b",))
    monkeypatch.setenv(standby._DEVICE, on)
    standby.load()
    assert seen == loaded


def test_the_modules_exist():
    """In a process of their own: what they import must not depend on what the tests have."""
    names = (*standby._ANY_DEVICE, *standby._CPU_ONLY)
    code = f"import importlib; [importlib.import_module(name) for name in {names!r}]"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=240, capture_output=True)


def test_the_first_worker_of_a_node_asks_once_training_is_under_way(monkeypatch):
    asked = []
    monkeypatch.setattr(standby, "request", asked.append)
    with standby.kept(3, after_s=0.01):
        deadline = time.monotonic() + 10
        while not asked and time.monotonic() < deadline:
            time.sleep(0.01)
    assert asked == [3]
    with standby.kept(3, after_s=30):
        pass
    with standby.kept(0, after_s=0.0):
        time.sleep(0.05)
    assert asked == [3]


def test_a_ray_that_refuses_is_told_and_nothing_else(monkeypatch, caplog):
    def refuse(processes):
        raise AttributeError("no such request")

    monkeypatch.setattr(standby, "request", refuse)
    with caplog.at_level(logging.WARNING):
        standby._ask(2)
    assert "no spare worker processes (AttributeError: no such request)" in caplog.text


PROBE = """
import sys, time
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_jobs import cluster, standby

MARK = {"env_vars": {"PROBE": "1", standby._HOOK: "ray_jobs.standby.load", standby._DEVICE: "none"}}


@ray.remote(num_cpus=0.1, runtime_env=MARK)
class Worker:
    def ask(self):
        from ray_jobs import standby

        standby.request(1)

    def age(self):  # of the process, in seconds, and whether it had imported before it was handed out
        import psutil

        return time.time() - psutil.Process().create_time(), "torch" in sys.modules


with cluster.connected():
    first = Worker.remote()
    ray.get(first.ask.remote(), timeout=120)
    time.sleep(30)
    group = placement_group([{"CPU": 0.1}])
    ray.get(group.ready(), timeout=60)
    began = time.time()
    second = Worker.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote()
    age, imported = ray.get(second.age.remote(), timeout=120)
    print("SPARE" if age > time.time() - began + 5 else "NEW", "IMPORTED" if imported else "BARE")
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ray_hands_out_the_spare_with_its_imports(tmp_path):
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE)
    done = subprocess.run(
        [sys.executable, str(probe)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=390,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "SPARE IMPORTED" in done.stdout
