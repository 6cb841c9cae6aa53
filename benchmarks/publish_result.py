"""Copies the figures of a finished run into `results/`, without a row of its data and without a path of the machine.

    python -m benchmarks.publish_result runs/viggo_smollm2_135m results/viggo_smollm2_135m

What is kept: the report up to its examples, its plots, results per metric, the log of every step, the configuration
and what the run came from. What is left out: records, model outputs, per-item scores.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.without_rows import figures_only, results_only, without_paths
from evaluation import training


def publish(run: Path, out: Path) -> None:
    """Writes `out` afresh from the run folder."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    report = (run / "report" / "report.md").read_text()
    shutil.copytree(run / "report" / "plots", out / "plots")
    shutil.copy(run / "metrics.jsonl", out / "metrics.jsonl")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (out / "config.yaml").write_text(yaml.safe_dump(without_paths(config), sort_keys=False))
    facts = json.loads((run / "provenance.json").read_text())
    facts["command"] = ["fulltune", *(without_paths(part) for part in facts["command"][1:])]
    (out / "README.md").write_text(figures_only(report) + _how_it_was_made(run, without_paths(facts)))
    (out / "provenance.json").write_text(json.dumps(without_paths(facts), indent=1) + "\n")
    results = json.loads((run / "report" / "results.json").read_text())
    (out / "results.json").write_text(json.dumps(results_only(results), indent=1) + "\n")


def _how_it_was_made(run: Path, facts: dict[str, Any]) -> str:
    """Command, code and the course of the training."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    minutes = 60 * (training.worker_hours(lines, 1) or 0.0)  # of all steps, also where only some are logged
    seconds = sum(step["tokens"] / step["tokens_per_s"] for step in steps)
    tokens = sum(step["tokens"] for step in steps)
    valid = ", ".join(f"{line['valid_loss']:.4f} after step {line['step']}" for line in lines if "valid_loss" in line)
    return f"""## How it was made

```
{" ".join(str(part) for part in facts["command"])}
```

Code {facts["git"]}, {facts["hardware"]}. {steps[-1]["step"]} steps, {tokens:,} tokens
in those that are logged, {minutes:.0f} minutes in steps ({tokens / seconds:.0f} tokens/s;
other work ran on the machine at the same time), {steps[-1]["attempt"]} attempt(s).
Validation loss: {valid}. Every step is in [metrics.jsonl](metrics.jsonl), the settings in [config.yaml](config.yaml).

![Training loss by step](plots/loss.png)
"""


if __name__ == "__main__":
    publish(Path(sys.argv[1]), Path(sys.argv[2]))
