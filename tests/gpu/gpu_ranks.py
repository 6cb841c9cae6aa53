"""The body of one worker of the GPU tests: `python gpu_ranks.py CASE JSON`, started once per rank.

It starts as a worker under Ray starts (`device.attach`, the same backend), and leaves Ray out.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import ranks
from fulltune import batches, comm, config, data, device, session
from fulltune.engine import build
from fulltune.train import Schedule, StepDone, fit


def run_config(arguments: dict[str, Any], **changes: Any) -> config.RunConfig:
    """The test's base with this run's changes (`section__key`)."""
    tree = json.loads(json.dumps(arguments["base"]))
    tree["ray"]["use_gpu"] = arguments["use_gpu"]
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            tree.setdefault(section, {})[leaf] = value
        else:
            tree[section] = value
    return config.resolve(tree, origin="test")


def case_losses(arguments: dict[str, Any], workers: comm.Workers) -> dict[str, Any]:
    """Loss, gradient norm and peak bytes of a few steps, and what attention was taken."""
    run = run_config(arguments, **arguments["changes"])
    session.seed_everything(run.train.seed)
    table = data.TokenTable(Path(arguments["tokens"]))
    planner = batches.StepPlanner(table, run.train, run.data.packing, workers.rank, workers.size)
    engine = build(run, Path(arguments["model"]), num_workers=workers.size)
    device.reset_peak(engine.device)
    schedule = Schedule(total_steps=arguments["steps"], save_every=None, validate_every=None)
    events = fit(engine, planner.step, lambda rows: batches.collate(table, rows), run.train, schedule, workers=workers)
    records = [event for event in events if isinstance(event, StepDone)]
    return {
        "loss": [event.loss for event in records],
        "grad_norm": [event.grad_norm for event in records],
        "peak": device.peak_bytes(engine.device),
        "device": str(engine.device),
        "attention": engine.module.config._attn_implementation,
    }


def case_run(arguments: dict[str, Any], workers: comm.Workers) -> dict[str, Any]:
    """A whole run as a Ray worker does it, with metrics, checkpoints and resuming, in the folder `out`."""
    run = run_config(arguments, **arguments["changes"])
    inputs = session.Inputs(Path(arguments["model"]), Path(arguments["tokens"]), None, Path(arguments["out"]))
    said: list[str] = []
    result = session.run(run, inputs, workers, say=said.append)
    return {"finished": result.finished, "said": said}


def main() -> None:
    """Runs one case on this rank and writes `<rank>.json`."""
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    run = run_config(arguments, **arguments.get("changes", {}))
    use_gpu = arguments["use_gpu"]
    if use_gpu:
        target = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        dtype = device.dtype_name(run.model.dtype, use_gpu=True)
        device.attach(target, dtype, deterministic=run.train.deterministic)
    case, backend = globals()[f"case_{name}"], device.backend(use_gpu=use_gpu)
    ranks.serve(lambda workers: case(arguments, workers), Path(arguments["results"]), backend=backend)


if __name__ == "__main__":
    main()
