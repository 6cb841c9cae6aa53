"""Seconds from the SIGKILL of a worker to the next optimizer step: fulltune beside Ray Train's default path.

    python -m benchmarks.recovery_time [--kills 3]

The default path is what Ray's guide to DeepSpeed shows: a training function that reports DeepSpeed's own checkpoint
every five steps through `ray.train.report` and loads it after a restart (`benchmarks.recovery_worker`). Both train the
same tiny model with ZeRO-2 on two workers and save every five steps. Prints a line per kill and one JSON object; on a
busy machine only the ratio means something.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.tiny import MODEL
from fulltune import metrics

ROOT = Path(__file__).resolve().parents[1]
SAVE_EVERY = 5
SETTLE_S = 30.0  # between a restart and the next kill: the run has saved, and spare processes are there
BOUND_S = 300.0
RECIPE: dict[str, Any] = {
    "task": "viggo",
    "model": MODEL,
    "data": {"limit": 300, "packing": False},
    "train": {"learning_rate": 1e-3, "num_epochs": 10_000, "max_steps": 5_000, "global_batch_size": 24},
    "deepspeed": "zero2",
    "ray": {"num_workers": 2, "cpus_per_worker": 0.5, "max_failures": 20},
    "checkpoint": {"every_steps": SAVE_EVERY, "keep_last": 2},
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A running training: its driver, the pid of each worker, and (attempt, step) of the last step taken."""

    name: str
    driver: subprocess.Popen[bytes]
    pid: Callable[[int], int]
    progress: Callable[[], tuple[int, int]]


def main() -> None:
    """Measure both, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=20261122)
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    for start in (ray_default, fulltune):
        with tempfile.TemporaryDirectory() as folder:
            subject = start(Path(folder))
            try:
                found[subject.name] = recoveries(subject, options.kills, random.Random(options.seed))
            finally:
                end(subject.driver)
    medians = {name: round(statistics.median(seconds), 1) for name, seconds in found.items()}
    ratio = medians["fulltune"] / medians["ray_default"]
    print(json.dumps({"seconds": found, "median": medians, "ratio": round(ratio, 2)}))


def recoveries(subject: Subject, kills: int, draw: random.Random) -> list[float]:
    """Seconds of each recovery; lost steps never exceed the interval between two checkpoints."""
    found = []
    for attempt in range(1, kills + 1):
        wait(subject, lambda attempt=attempt: subject.progress() >= (attempt, SAVE_EVERY + 2))
        time.sleep(SETTLE_S)
        before, began = subject.progress()[1], time.monotonic()
        os.kill(subject.pid(draw.randrange(2)), signal.SIGKILL)
        wait(subject, lambda attempt=attempt: subject.progress()[0] > attempt)
        found.append(round(time.monotonic() - began, 1))
        lost = before - subject.progress()[1] + 1
        print(json.dumps({"subject": subject.name, "kill": attempt, "seconds": found[-1], "lost": lost}), flush=True)
    return found


def wait(subject: Subject, condition: Callable[[], bool]) -> None:
    """Polls, within a bound; a driver that ends is an error."""
    deadline = time.monotonic() + BOUND_S
    while not condition():
        if subject.driver.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{subject.name}: no progress after {subject.progress()}")
        time.sleep(0.02)


def fulltune(folder: Path) -> Subject:
    """`fulltune train` on a recipe."""
    recipe, run = folder / "tiny.yaml", folder / "run"
    ray = RECIPE["ray"] | {"storage_path": str(folder), "name": "run"}
    recipe.write_text(yaml.safe_dump(RECIPE | {"ray": ray}))

    def progress() -> tuple[int, int]:
        last = [line for line in metrics.read(run) if "loss" in line][-1:]
        return (last[0]["attempt"], last[0]["step"]) if last else (0, 0)

    def pid(rank: int) -> int:
        return int(json.loads((run / "workers" / f"{rank}.json").read_text())["pid"])

    return Subject("fulltune", start(folder, "ray_jobs.train", str(recipe)), pid, progress)


def ray_default(folder: Path) -> Subject:
    """A plain Ray Train script with DeepSpeed's checkpoints."""

    def progress() -> tuple[int, int]:
        file = folder / "steps"
        lines = file.read_text().splitlines() if file.exists() else []
        attempt, step = lines[-1].split() if lines else (0, 0)
        return int(attempt), int(step)

    def pid(rank: int) -> int:
        return int((folder / f"pid-{rank}").read_text())

    return Subject("ray_default", start(folder, "benchmarks.recovery_worker", str(folder)), pid, progress)


def start(folder: Path, module: str, argument: str) -> subprocess.Popen[bytes]:
    """A driver in a session of its own; what it says goes to a file."""
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-m", module, argument]
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def end(driver: subprocess.Popen[bytes]) -> None:
    """Ends a driver and the Ray cluster that it started."""
    driver.send_signal(signal.SIGINT)
    try:
        driver.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(driver.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
