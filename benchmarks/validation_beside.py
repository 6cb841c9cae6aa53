"""Training while checkpoints are validated by the task's metric: steps in that time, and what a step takes meanwhile.

    python -m benchmarks.validation_beside [--run RUN_FOLDER]

Without a folder a small run is made: two workers of half a CPU each, validations that may take half a CPU beside them.
A step counts as beside a validation if it began and ended between the validation's two stamps. Prints one JSON object;
`ratio` is the median step with a validation beside it over the median step without.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.tiny import MODEL
from fulltune import metrics, validation

ROOT = Path(__file__).resolve().parents[1]
RECIPE: dict[str, Any] = {
    "task": "viggo",
    "model": MODEL,
    "data": {"limit": 400},
    "train": {"learning_rate": 3e-3, "num_epochs": 100, "max_steps": 200, "global_batch_size": 32},
    "deepspeed": "zero3",
    "checkpoint": {"every_steps": 50},
    "validation": {"every_steps": 50, "limit": 32, "metric": "parsable", "cpus": 0.5},
    "ray": {"num_workers": 2, "cpus_per_worker": 0.5, "name": "run", "standby": False},
}


def main() -> None:
    """Print the figures of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    if options.run is not None:
        print(json.dumps(figures(options.run), indent=1))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(figures(trained(Path(folder))), indent=1))


def trained(folder: Path) -> Path:
    """The folder of a small run."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"ray": RECIPE["ray"] | {"storage_path": str(folder)}}))
    subprocess.run([sys.executable, "-m", "ray_jobs.train", str(recipe)], cwd=ROOT, check=True, stdout=sys.stderr)
    return folder / "run"


def figures(run: Path) -> dict[str, Any]:
    """Steps beside each validation, and median seconds of a step with and without one."""
    lines = [line for line in metrics.read(run) if "loss" in line]
    steps = [(one["time"], two["time"]) for one, two in zip(lines, lines[1:], strict=False)]
    done = [outcome for outcome in validation.read(run) if outcome.status == "done"]
    beside: list[float] = []
    counts = {}
    for outcome in done:
        inside = [end - begin for begin, end in steps if outcome.started < begin and end < outcome.ended]
        counts[outcome.step] = len(inside)
        beside += inside
    alone = [end - begin for begin, end in steps if all(end < o.started or begin > o.ended for o in done)]
    with_it, without = (round(statistics.median(times), 4) if times else None for times in (beside, alone))
    ratio = round(with_it / without, 2) if with_it and without else None
    return {"steps_beside": counts, "seconds_with": with_it, "seconds_without": without, "ratio": ratio}


if __name__ == "__main__":
    main()
