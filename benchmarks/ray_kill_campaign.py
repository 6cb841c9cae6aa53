"""Kills workers and drivers of real Ray runs at random moments and compares the end with a run that was left alone.

    python -m benchmarks.ray_kill_campaign [--kills 10] [--configs zero0,zero2,zero3]

Per configuration one undisturbed run and one that is cut off `--kills` times: SIGKILL to a worker (Ray restarts it),
SIGKILL or SIGTERM to the driver (the same command is given again). Every third draw waits for a save, an upload or a
validation to be under way. The runs save and upload every five steps and validate by the task's metric beside the
training. In the end every loss and gradient norm must be the same in hexadecimal, and a SHA-256 over the last
checkpoint (weights, optimizer, random states) as well; the log must hold each step once. Prints a line per kill and per
configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.kill_ranks import digest
from benchmarks.tiny import MODEL
from fulltune import checkpoint, commit, metrics

ROOT = Path(__file__).resolve().parents[1]
STEPS, EVERY = 100, 5
BOUND_S = 400.0  # a step, a save, a restart
WHOLE_S = 1800.0  # a run to its end
RECIPE: dict[str, Any] = {
    "task": "viggo",
    "model": MODEL,
    "data": {"limit": 300, "packing": True},
    "train": {"learning_rate": 3e-3, "num_epochs": 100, "max_steps": STEPS, "global_batch_size": 24}
    | {"micro_batch_tokens": 600},
    "checkpoint": {"every_steps": EVERY, "keep_last": 2},
    "validation": {"every_steps": 10, "limit": 8, "metric": "parsable", "cpus": 0.5},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "zero0": {"stage": 0},
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero2-offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "zero3": {"stage": 3},
}
HOW = ("worker", "worker", "worker", "driver", "SIGTERM")
PHASES = ("save", "validation", "upload")


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, the recipe that fills it, and where it uploads to."""

    recipe: Path
    folder: Path
    mirror: Path

    def start(self) -> subprocess.Popen[bytes]:
        """`python -m ray_jobs.train`, in a session of its own."""
        command = [sys.executable, "-m", "ray_jobs.train", str(self.recipe), f"ray.name={self.folder.name}"]
        command += [f"checkpoint.upload_to=file://{self.mirror}"]
        with self.folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def progress(self) -> tuple[int, int]:
        """(attempt, step) of the last line in the log."""
        last = [line for line in metrics.read(self.folder) if "loss" in line][-1:]
        return (last[0]["attempt"], last[0]["step"]) if last else (0, 0)

    def is_in(self, phase: str) -> bool:
        """Whether a save, an upload or a validation is under way."""
        if phase == "save":
            return any((self.folder / checkpoint.FOLDER).glob(f"{commit.STAGE}step-*"))
        if phase == "validation":
            return any((self.folder / "validation").glob(".step-*"))
        copies = (self.mirror / self.folder.name).glob("step-*")  # the manifest is the last object of a copy
        return any(not (copy / checkpoint.MANIFEST).exists() for copy in copies)

    def outcome(self) -> dict[str, Any]:
        """What the run amounts to."""
        lines = [line for line in metrics.read(self.folder) if "loss" in line]
        curve = [(line["step"], float(line["loss"]).hex(), float(line["grad_norm"]).hex()) for line in lines]
        return {"curve": curve, "state": digest(self.folder / checkpoint.FOLDER / checkpoint.name(STEPS))}


def main() -> None:
    """Exit code 1 where a run that was cut off ends differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--configs", default="zero0,zero2,zero3")
    options = parser.parse_args()
    draw, results = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.configs.split(","):
            try:
                results.append(campaign(Path(folder), name, options.kills, draw))
                print(json.dumps(results[-1]), flush=True)
            except (RuntimeError, TimeoutError) as error:
                logs = [file.read_text(errors="replace")[-3000:] for file in sorted(Path(folder).glob(f"{name}-*.log"))]
                raise SystemExit(f"{name}: {error}\n" + "\n".join(logs)) from None
    sys.exit(int(any(result["outcome"] != "same" for result in results)))


def campaign(folder: Path, name: str, kills: int, draw: random.Random) -> dict[str, Any]:
    """The undisturbed run, then the other one, of one configuration."""
    recipe = folder / f"{name}.yaml"
    ray = {"num_workers": 2, "cpus_per_worker": 0.5, "max_failures": 100, "storage_path": str(folder)}
    recipe.write_text(yaml.safe_dump(RECIPE | {"ray": ray, "deepspeed": {"zero_optimization": CONFIGS[name]}}))
    whole, cut = (Run(recipe, folder / f"{name}-{kind}", folder / f"{name}-{kind}-up") for kind in ("whole", "cut"))
    until(whole.start(), lambda: False, ends=True)
    expected = whole.outcome()
    driver, inside = cut.start(), Counter[str]()
    for number, step in enumerate(sorted(draw.sample(range(2, STEPS - 1), kills))):
        how, phase = HOW[draw.randrange(len(HOW))], PHASES[number // 3 % len(PHASES)] if number % 3 == 0 else None
        attempt = cut.progress()[0]
        until(driver, lambda step=step, phase=phase: cut.progress()[1] >= step and (not phase or cut.is_in(phase)))
        found = [one for one in PHASES if cut.is_in(one)]
        driver = strike(driver, cut, how, draw)
        inside.update(found or ["training"])
        line = {"config": name, "kill": number + 1, "how": how, "after_step": cut.progress()[1], "inside": found}
        print(json.dumps(line | {"attempt": attempt}), flush=True)
    until(driver, lambda: False, ends=True)
    got = cut.outcome()
    different = [key for key in expected if got[key] != expected[key]]
    outcome = f"differs in {', '.join(different)}" if different else "same"
    return {"config": name, "kills": kills, "attempts": cut.progress()[0], "inside": dict(inside), "outcome": outcome}


def strike(driver: subprocess.Popen[bytes], run: Run, how: str, draw: random.Random) -> subprocess.Popen[bytes]:
    """Cuts the run off and waits until it has taken a step again; returns the driver that goes on."""
    attempt = run.progress()[0]
    if how == "worker":
        presence = run.folder / "workers" / f"{draw.randrange(2)}.json"
        os.kill(json.loads(presence.read_text())["pid"], signal.SIGKILL)
    else:
        driver.send_signal(signal.SIGKILL if how == "driver" else signal.SIGTERM)
        driver.wait(timeout=BOUND_S)
        driver = run.start()
    until(driver, lambda: run.progress()[0] > attempt, ends=None)
    return driver


def until(driver: subprocess.Popen[bytes], condition: Callable[[], bool], *, ends: bool | None = False) -> None:
    """Polls, within a bound. `ends`: the driver is to end, with 0; None: it may."""
    bound = WHOLE_S if ends else BOUND_S
    deadline = time.monotonic() + bound
    while driver.poll() is None and not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"what was waited for did not come within {bound:.0f} s")
        time.sleep(0.005)
    code = driver.poll()
    if code is None or (ends is None and code == 0):
        return
    if not ends or code != 0:
        raise RuntimeError(f"the driver ended with {code}")


if __name__ == "__main__":
    main()
