"""One worker process of `benchmarks.kill_campaign`: trains a tiny run to its end, or until it is killed.

Started by a fork server that has imported torch, transformers and DeepSpeed, so that a start takes a second or two.
Two ways of saving: fulltune's (`session.run`), and DeepSpeed's own as its tutorial has it: `save_checkpoint` in place,
`load_checkpoint` without a tag.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fulltune import batches, checkpoint, comm, config, data, metrics, session
from fulltune.engine import Engine, build, prebuild
from fulltune.train import Schedule, StepDone, fit

Load = Callable[[Sequence[int]], batches.MicroBatch]


def main(rank: int, workers: int, port: int, run: Mapping[str, Any], folder: str, inputs: Mapping[str, str]) -> None:
    """Runs to the end and exits with 0; with 3 and a text in `<folder>/error-<rank>` otherwise."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    quiet = os.open(Path(folder) / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    try:
        dist.init_process_group("gloo", rank=rank, world_size=workers, timeout=timedelta(seconds=60))
        prebuild.attach()
        resolved = config.resolve(dict(run), origin="campaign")
        place = session.Inputs(Path(inputs["model"]), Path(inputs["tokens"]), None, Path(folder))
        train = _plain if inputs["how"] == "deepspeed" else _ours
        train(resolved, place, comm.Workers(rank, workers))
    except BaseException:
        (Path(folder) / f"error-{rank}").write_text(traceback.format_exc())
        os._exit(3)
    os._exit(0)  # a killed peer must not keep this process in the destruction of its group


def _ours(run: config.RunConfig, inputs: session.Inputs, workers: comm.Workers) -> None:
    session.fit = _noting(inputs.run, workers.rank)  # type: ignore[attr-defined]
    session.run(run, inputs, workers, say=lambda line: _append(inputs.run / "said", line))


def _plain(run: config.RunConfig, inputs: session.Inputs, workers: comm.Workers) -> None:
    """DeepSpeed's documented way: save in place under a tag, resume from what `latest` names, else from the start."""
    session.seed_everything(run.train.seed)
    table = data.TokenTable(inputs.train_data)
    planner = batches.StepPlanner(table, run.train, run.data.packing, workers.rank, workers.size)
    engine = build(run, inputs.model, num_workers=workers.size)
    root = inputs.checkpoints
    _, client = engine._wrapped.load_checkpoint(str(root))
    first = int((client or {}).get("step", 0)) + 1
    every = run.checkpoint.every_steps or planner.total_steps
    schedule = Schedule(total_steps=planner.total_steps, save_every=None, validate_every=None)
    events = _noting(inputs.run, workers.rank)(
        engine,
        planner.step,
        lambda indices: batches.collate(table, indices),
        run.train,
        schedule,
        workers=workers,
        first_step=first,
    )
    began, end = time.perf_counter(), planner.total_steps
    log = session._log(run, inputs, workers, engine, first - 1, end, began) if workers.rank == 0 else None
    for event in events:
        if not isinstance(event, StepDone):
            continue
        if log is not None:
            log.step(event)
        if event.step % every == 0 or event.step == planner.total_steps:
            engine._wrapped.save_checkpoint(str(root), tag=f"s{event.step}", client_state={"step": event.step})


def _noting(folder: Path, rank: int) -> Callable[..., Iterator[Any]]:
    """`fit`, writing down which examples this worker loads in each step."""

    def noted(engine: Engine, plan: Callable[[int], batches.Step], load: Load, *rest: Any, **named: Any) -> Any:
        step = 0

        def plan_noted(number: int) -> batches.Step:
            nonlocal step
            step = number
            _append(folder / f"examples-{rank}", json.dumps([step, "start"]))
            return plan(number)

        def load_noted(indices: Sequence[int]) -> batches.MicroBatch:
            _append(folder / f"examples-{rank}", json.dumps([step, [int(index) for index in indices]]))
            return load(indices)

        return fit(engine, plan_noted, load_noted, *rest, **named)

    return noted


def _append(file: Path, line: str) -> None:
    with file.open("a", encoding="utf-8") as handle:
        handle.write(line + "\n")


def outcome(folder: Path, workers: int, *, ours: bool) -> dict[str, Any]:
    """What a finished run amounts to: hex losses, one SHA-256 over its last checkpoint, examples by step."""
    lines = [line for line in metrics.read(folder) if "loss" in line]
    losses = [(line["step"], float(line["loss"]).hex(), float(line["grad_norm"]).hex()) for line in lines]
    root = folder / "checkpoints"
    last = root / (checkpoint.name(lines[-1]["step"]) if ours else f"s{lines[-1]['step']}")
    examples: dict[int, list[int]] = {}
    for rank in range(workers):
        for step, indices in _last_attempts(folder / f"examples-{rank}").items():
            examples.setdefault(step, []).extend(indices)
    return {"losses": losses, "state": digest(last), "examples": {s: sorted(i) for s, i in sorted(examples.items())}}


def _last_attempts(file: Path) -> dict[int, list[int]]:
    steps: dict[int, list[int]] = {}
    for line in file.read_text().splitlines():
        step, indices = json.loads(line)
        steps[step] = [] if indices == "start" else steps[step] + indices
    return steps


def digest(folder: Path) -> str:
    """SHA-256 over every number in a checkpoint: weights, optimizer states, step counters, random states."""
    whole = hashlib.sha256()
    for file in sorted(folder.rglob("*.pt")):
        whole.update(str(file.relative_to(folder)).encode())
        _feed(whole, torch.load(file, map_location="cpu", weights_only=False))
    return whole.hexdigest()


def _feed(whole: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        whole.update(f"{value.dtype}{tuple(value.shape)}".encode())
        whole.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            if key != "ds_config":
                whole.update(str(key).encode())
                _feed(whole, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(whole, item)
    elif isinstance(value, bool | int | float | str | None):
        whole.update(repr(value).encode())
