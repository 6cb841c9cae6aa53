"""The body of one worker process of the property tests: `python ranks.py CASE JSON`, started once per rank.

Importing torch, transformers and DeepSpeed costs more than the tiny runs themselves, so one process works through many
configurations and writes its findings as JSON and tensors. No Ray here: the properties belong to the core.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import mutations
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from benchmarks import ranks
from fulltune import batches, comm, config, data, session
from fulltune.engine import build, shards
from fulltune.train import Schedule, Skipped, StepDone, fit


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
    run: config.RunConfig,
    model: Path,
    tokens: Path,
    workers: comm.Workers,
    *,
    steps: int,
    plan: list[int] | None = None,
    poison: int | None = None,
) -> tuple[Any, list[dict[str, float]]]:
    """Trains and returns the engine and the record of each step.

    Args:
        plan: the planned steps to take, in place of 1, 2, 3 ...
        poison: in this step the last worker's loss is NaN.
    """
    session.seed_everything(run.train.seed)
    table = data.TokenTable(tokens)
    planner = batches.StepPlanner(table, run.train, run.data.packing, workers.rank, workers.size)
    engine = build(run, model, num_workers=workers.size)
    schedule = Schedule(total_steps=steps, save_every=None, validate_every=None)
    current = 0

    def step(number: int) -> batches.Step:
        nonlocal current
        current = plan[number - 1] if plan else number
        return planner.step(current)

    def load(indices: list[int]) -> batches.MicroBatch:
        batch = batches.collate(table, indices)
        poisoned = current == poison and workers.rank == workers.size - 1
        return dataclasses.replace(batch, weight=math.nan) if poisoned else batch

    with counted_gathers() as gathers:
        events = list(fit(engine, step, load, run.train, schedule, workers=workers))
    head = engine.module.get_output_embeddings().weight
    records = [
        {
            "loss": e.loss,
            "grad_norm": e.grad_norm,
            "micro_batches": len(planner.step(e.step).micro_batches),
            "head_gathers": gathers[getattr(head, "ds_id", None)],  # of the whole run
        }
        for e in events
        if isinstance(e, StepDone)
    ]
    assert [e.step for e in events if isinstance(e, Skipped)] == ([poison] if poison else [])
    return engine, records


@contextmanager
def counted_gathers() -> Iterator[Counter[int]]:
    """Inside, how often ZeRO-3 fetches each parameter, by its `ds_id`."""
    name = "_PartitionedParameterCoordinator__all_gather_params_"
    gather = getattr(PartitionedParameterCoordinator, name)
    counts: Counter[int] = Counter()

    def counting(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        counts.update(p.ds_id for p in params if p.ds_status == ZeroParamStatus.NOT_AVAILABLE)
        return gather(self, params, *args, **kwargs)

    with mock.patch.object(PartitionedParameterCoordinator, name, counting):
        yield counts


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
        options = {key: changes.pop(key) for key in ("steps", "plan", "poison") if key in changes}
        options.setdefault("steps", arguments["steps"])
        mutation = changes.pop("mutation", None)
        run = run_config(arguments, **changes)
        with getattr(mutations, mutation)() if mutation else nullcontext():
            engine, records = train(run, Path(arguments["model"]), Path(arguments["tokens"]), workers, **options)
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
    """For each run: all steps at once, and all steps of which the last follow a restart from the checkpoint `cut_at`.

    The restarted run starts from a copy of the first one that has lost its later checkpoints; its log runs on past it.
    `of_more_workers`: the same from runs that more workers left there before.
    """
    said: dict[str, list[str]] = {}
    out = Path(arguments["out"])
    for name, changes in arguments["runs"].items():
        run = run_config(arguments, **arguments["changes"], **changes)
        said[f"whole-{name}"] = _to_the_end(run, arguments, out / f"whole-{name}", workers)
        if workers.rank == 0:
            go_back(out / f"whole-{name}", out / f"cut-{name}", arguments["cut_at"])
        said[f"cut-{name}"] = _to_the_end(run, arguments, out / f"cut-{name}", workers)
    for name, changes in arguments.get("of_more_workers", {}).items():
        run = run_config(arguments, **arguments["changes"], **changes)
        go_back(out / f"whole-{name}", out / f"fewer-{name}", arguments["cut_at"])
        said[f"fewer-{name}"] = _to_the_end(run, arguments, out / f"fewer-{name}", workers)
    return {"said": said}


def _to_the_end(run: config.RunConfig, arguments: dict[str, Any], folder: Path, workers: comm.Workers) -> list[str]:
    """What a run said that was taken to its end from whatever is in the folder."""
    if workers.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
    workers.barrier()
    inputs = session.Inputs(Path(arguments["model"]), Path(arguments["tokens"]), None, folder)
    said: list[str] = []
    assert session.run(run, inputs, workers, say=said.append).finished
    gc.collect()
    return said


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
        tokens = Path(arguments["tokens"])
        inputs = session.Inputs(Path(arguments["model"]), tokens, tokens, folder)
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


def case_hang(arguments: dict[str, Any], workers: comm.Workers) -> dict[str, Any]:
    """What each worker says when the last one holds other data, and when it never comes to step 2."""
    last = workers.rank == workers.size - 1
    model, tokens, out = Path(arguments["model"]), Path(arguments["tokens"]), Path(arguments["out"])
    said: list[str] = []

    def ending(run: config.RunConfig) -> str:
        try:
            session.run(run, session.Inputs(model, tokens, None, out), workers, say=said.append)
        except Exception as error:
            return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
        return "finished"

    changes = {"train__max_steps": 4, "ray__collective_timeout_s": arguments["timeout_s"]}
    disagreed = ending(run_config(arguments, **changes, train__seed=1 if last else 2))
    if last:
        batches.collate = late(batches.collate, calls=2, seconds=arguments["timeout_s"] + 3)
    late_ending = ending(run_config(arguments, **changes))
    # the process group is broken now, so the usual farewell would wait for ever
    result = {"disagreed": disagreed, "late": late_ending, "said": said}
    Path(arguments["results"], f"{workers.rank}.json").write_text(json.dumps(result))
    os._exit(0)


def late(function: Any, *, calls: int, seconds: float) -> Any:
    """The same function; the call of that number takes so long."""
    done = 0

    def slowed(*args: Any) -> Any:
        nonlocal done
        done += 1
        if done == calls:
            time.sleep(seconds)
        return function(*args)

    return slowed


def main() -> None:
    """Runs one case on this rank and writes `<rank>.json`."""
    torch.set_num_threads(1)
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    case = globals()[f"case_{name}"]
    ranks.serve(lambda workers: case(arguments, workers), Path(arguments["results"]))


if __name__ == "__main__":
    main()
