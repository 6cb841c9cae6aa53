"""The body of one worker process of the property tests: `python ranks.py CASE JSON`, started once per rank.

Importing torch, transformers and DeepSpeed costs more than the tiny runs themselves, so one process works through many
configurations and writes its findings as JSON and tensors. No Ray here: the properties belong to the core.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fulltune import batches, comm, config, data, session
from fulltune.engine import build, prebuild, shards
from fulltune.train import Schedule, StepDone, fit


def run_config(arguments: dict[str, Any], **changes: Any) -> config.RunConfig:
    """A resolved configuration from the test's base and this run's changes (dotted keys)."""
    tree = json.loads(json.dumps(arguments["base"]))
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            tree.setdefault(section, {})[leaf] = value
        else:
            tree[section] = value
    return config.resolve(tree, origin="test")


def train(
    run: config.RunConfig, model: Path, tokens: Path, workers: comm.Workers, *, steps: int
) -> tuple[Any, list[dict[str, float]]]:
    """Trains and returns the engine and the record of each step."""
    session.seed_everything(run.train.seed)
    table = data.TokenTable(tokens)
    planner = batches.StepPlanner(table, run.train, run.data.packing, workers.rank, workers.size)
    engine = build(run, model, num_workers=workers.size)
    schedule = Schedule(total_steps=steps, save_every=None, validate_every=None)
    events = fit(engine, planner.step, lambda i: batches.collate(table, i), run.train, schedule, workers=workers)
    records = [
        {"loss": e.loss, "grad_norm": e.grad_norm, "micro_batches": len(planner.step(e.step).micro_batches)}
        for e in events
        if isinstance(e, StepDone)
    ]
    return engine, records


def weights(engine: Any, folder: Path, workers: comm.Workers) -> None:
    """Saves the sharded state and, on worker 0, the whole tensors read back from it."""
    if workers.rank == 0:
        folder.mkdir(parents=True)
    workers.barrier()
    engine.save(folder)
    if workers.rank == 0:
        torch.save(dict(shards.tensors(folder)), folder / "whole.pt")
    workers.barrier()


def case_matrix(arguments: dict[str, Any], workers: comm.Workers) -> dict[str, Any]:
    """Every named run of `arguments["runs"]`: its records, and its weights after the last step."""
    found: dict[str, Any] = {}
    for name, changes in arguments["runs"].items():
        steps = changes.pop("steps", arguments["steps"])
        run = run_config(arguments, **changes)
        engine, records = train(run, Path(arguments["model"]), Path(arguments["tokens"]), workers, steps=steps)
        weights(engine, Path(arguments["out"]) / name, workers)
        found[name] = records
        del engine
        gc.collect()
    return found


def case_partitioned(arguments: dict[str, Any], workers: comm.Workers) -> dict[str, Any]:
    """What a worker holds of each parameter right after `from_pretrained`, before DeepSpeed's engine exists."""
    from fulltune.engine import core, settings

    run = run_config(arguments, deepspeed="zero3")
    complete = settings.complete(run, num_workers=workers.size)
    model, keep = core.load_for(run, complete, Path(arguments["model"]))
    parameters = list(model.parameters())
    return {
        "alive": keep is not None,
        "local": sum(p.numel() for p in parameters),
        "shard": sum(p.ds_tensor.numel() for p in parameters),
        "whole": sum(p.ds_numel for p in parameters),
    }


def case_resume(arguments: dict[str, Any], workers: comm.Workers) -> dict[str, Any]:
    """For each stage: 12 steps at once, and 12 steps of which 9-12 follow a restart from the checkpoint of step 8.

    The restarted run starts from a copy of the first one that has lost its last checkpoint; its log runs on past it.
    `of_more_workers`: the same from runs that more workers left there before.
    """
    said: dict[str, list[str]] = {}
    for stage in arguments["stages"]:
        run = run_config(arguments, **arguments["changes"], deepspeed=f"zero{stage}")
        whole, cut = (Path(arguments["out"]) / f"{name}-{stage}" for name in ("whole", "cut"))
        for folder in (whole, cut):
            if workers.rank == 0:
                folder.mkdir(parents=True)
                if folder is cut:
                    shutil.copytree(whole, cut, dirs_exist_ok=True)
                    shutil.rmtree(cut / "checkpoints" / "step-00000012")
                    (cut / "checkpoints" / "pointer.json").write_text('{"step": 8}')
            workers.barrier()
            inputs = session.Inputs(Path(arguments["model"]), Path(arguments["tokens"]), None, folder)
            lines: list[str] = []
            assert session.run(run, inputs, workers, say=lines.append).finished
            said[folder.name] = lines
            gc.collect()
    for stage in arguments.get("of_more_workers", []):
        run = run_config(arguments, **arguments["changes"], deepspeed=f"zero{stage}")
        folder = Path(arguments["out"]) / f"fewer-{stage}"
        go_back(Path(arguments["out"]) / f"whole-{stage}", folder, 8)
        inputs = session.Inputs(Path(arguments["model"]), Path(arguments["tokens"]), None, folder)
        assert session.run(run, inputs, workers, say=lines.append).finished
        gc.collect()
    return {"said": said}


def go_back(source: Path, folder: Path, step: int) -> None:
    """A copy of a run that has lost every checkpoint after `step`."""
    shutil.copytree(source, folder)
    for path in (folder / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    (folder / "checkpoints" / "pointer.json").write_text(json.dumps({"step": step}))


def noting(seen: dict[int, list[int]]) -> Any:
    """`fit`, noting which examples this worker loads in each step."""

    def noted(engine: Any, plan: Any, load: Any, *rest: Any, **named: Any) -> Any:
        step = 0

        def plan_noted(number: int) -> Any:
            nonlocal step
            step = number
            return plan(number)

        def load_noted(indices: Any) -> Any:
            seen.setdefault(step, []).extend(int(index) for index in indices)
            return load(indices)

        return fit(engine, plan_noted, load_noted, *rest, **named)

    return noted


def case_elastic(arguments: dict[str, Any], workers: comm.Workers) -> dict[str, Any]:
    """Every named run with this number of workers, whole or (`back_to`) from a checkpoint of another number."""
    halve_the_rate_of_vectors()
    found: dict[str, Any] = {}
    for name, changes in arguments["runs"].items():
        run = run_config(arguments, **arguments["changes"], **changes)
        folder = Path(arguments["out"]) / name
        if workers.rank == 0 and arguments["back_to"] is not None:
            go_back(Path(arguments["source"]) / name, folder, arguments["back_to"])
        workers.barrier()
        inputs = session.Inputs(Path(arguments["model"]), Path(arguments["tokens"]), None, folder)
        folder.mkdir(parents=True, exist_ok=True)
        seen: dict[int, list[int]] = {}
        session.fit = noting(seen)
        said: list[str] = []
        assert session.run(run, inputs, workers, say=said.append).finished
        found[name] = {"seen": seen, "said": said}
        gc.collect()
    return found


def halve_the_rate_of_vectors() -> None:
    """Parameter groups with learning rates of their own: the product has none yet, its checkpoints must keep them."""
    from fulltune.engine import core

    original = core.parameter_groups

    def groups(*args: Any) -> list[dict[str, Any]]:
        matrices, vectors = original(*args)
        return [matrices, vectors | {"lr_scale": 0.5}]

    core.parameter_groups = groups


def main() -> None:
    """Runs one case on this rank and writes `<rank>.json`."""
    torch.set_num_threads(1)
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    dist.init_process_group("gloo")
    prebuild.attach()
    workers = comm.Workers(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    result = globals()[f"case_{name}"](arguments, workers)
    Path(arguments["results"], f"{workers.rank}.json").write_text(json.dumps(result))
    workers.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
