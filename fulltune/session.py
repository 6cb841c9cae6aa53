"""One worker's part in a run: build the engine, resume if there is something to resume, train, log, save.

Consumes the records of `fulltune.train.fit`. Knows ranks and disks but not Ray, so the same function runs under Ray
Train, under torch's own launcher, and in a test. Everything it needs was prepared beforehand and lies in folders.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tasks
from fulltune import checkpoint, comm, device, export, meter, validation
from fulltune.batches import StepPlanner, collate, pack
from fulltune.config import RunConfig
from fulltune.data import TokenTable
from fulltune.engine import Engine, build, stage_of
from fulltune.metrics import MetricsLog
from fulltune.stream import Stream, StreamPlanner
from fulltune.train import Event, SaveDue, Schedule, StepDone, Stopped, Validated, fit, mean_loss
from tasks.base import UserError

STOP_FILE = "stop"  # put into the run folder, it asks the workers to save and end


@dataclass(frozen=True, slots=True)
class Inputs:
    """Folders that were prepared for the run; None where the run has no validation."""

    model: Path
    train_data: Path
    valid_data: Path | None
    run: Path

    @property
    def checkpoints(self) -> Path:
        return self.run / checkpoint.FOLDER


@dataclass(frozen=True, slots=True)
class Result:
    """How the worker's part ended."""

    step: int
    total_steps: int
    finished: bool


def run(
    config: RunConfig,
    inputs: Inputs,
    workers: comm.Workers,
    *,
    say: Callable[[str], None],
    stream: Stream | None = None,
) -> Result:
    """Trains until the last step or a request to stop; every worker calls it with the same arguments.

    Args:
        say: prints a line for the user; called on worker 0 only.
        stream: this worker's share of the training data where `data.loader` is streaming.
    """
    began = time.perf_counter()
    seed_everything(config.train.seed)
    engine = build(config, inputs.model, num_workers=workers.size)
    tell = say if workers.rank == 0 else _silent
    loader = _loader(config, inputs, workers, engine, stream, tell)
    identity = fingerprint(config, inputs, num_workers=workers.size)
    step = _resume(engine, inputs, workers, identity, tell)
    if step and isinstance(loader, StreamPlanner):
        loader.restore(inputs.checkpoints / checkpoint.name(step))
    watch = _watch(config, inputs, workers, keep_to=step)
    events = fit(
        engine,
        loader.step,
        loader.load,
        config.train,
        Schedule(
            total_steps=loader.total_steps,
            save_every=config.checkpoint.every_steps,
            validate_every=config.validation.every_steps,
            save_when_validating=config.validation.metric is not None,
        ),
        workers=workers,
        validate=_validation(engine, inputs, config, workers),
        stop_requested=lambda: (inputs.run / STOP_FILE).exists() or (watch is not None and watch.exhausted()),
        first_step=step + 1,
    )
    log = _log(config, inputs, workers, engine, step, loader.total_steps, began) if workers.rank == 0 else None
    save = partial(_save, engine, inputs, workers, config, identity, loader, watch)
    last, finished = _consume(events, log, save, step, watch)
    if not finished and any(workers.gather(watch is not None and watch.exhausted())):
        finished = True
        if workers.rank == 0:
            validation.write_early_stop(inputs.run, last)
            tell(f"ended after step {last}: {config.validation.metric} got no better")
    if not finished:
        tell(f"stopped on request after step {last}; run the same command to go on")
    return Result(step=last, total_steps=loader.total_steps, finished=finished)


def _loader(
    config: RunConfig,
    inputs: Inputs,
    workers: comm.Workers,
    engine: Engine,
    stream: Stream | None,
    tell: Callable[[str], None],
) -> StepPlanner | StreamPlanner:
    if stream is not None:
        return StreamPlanner(stream, config.data, config.train, workers, device=engine.device, say=tell)
    table = TokenTable(inputs.train_data)
    return StepPlanner(table, config.train, config.data.packing, workers.rank, workers.size)


def _watch(config: RunConfig, inputs: Inputs, workers: comm.Workers, *, keep_to: int) -> validation.Watch | None:
    """Worker 0's eye on the validations beside training, without those of steps that will be taken again."""
    if workers.rank != 0 or config.validation.metric is None:
        return None
    validation.forget_after(inputs.run, keep_to)
    return validation.Watch(inputs.run, config.validation, tasks.get(config.task, **config.task_options))


def _log(
    config: RunConfig, inputs: Inputs, workers: comm.Workers, engine: Engine, step: int, total_steps: int, began: float
) -> MetricsLog:
    figures = meter.for_run(
        inputs.model,
        gpu_name=device.gpu_name(engine.device),
        dtype=device.dtype_name(config.model.dtype, use_gpu=config.ray.use_gpu),
        workers=workers.size,
        total_steps=total_steps,
    )
    return MetricsLog(inputs.run, meter=figures, keep_to=step, began=began, every=config.tracking.log_every_steps)


def _consume(
    events: Iterator[Event],
    log: MetricsLog | None,
    save: Callable[[int, float | None], None],
    step: int,
    watch: validation.Watch | None,
) -> tuple[int, bool]:
    """Logs and saves what the loop yields; returns the last step, and whether it was the planned one."""
    valid_loss: float | None = None
    finished = True
    for event in events:
        match event:
            case StepDone():
                step, valid_loss = event.step, None
                if log is not None:
                    log.step(event)
                    for outcome in watch.news() if watch is not None else ():
                        log.outcome(outcome)
            case Validated():
                valid_loss = event.loss
                if log is not None:
                    log.validated(event)
            case SaveDue():
                save(event.step, valid_loss)
            case Stopped():
                finished = False
    return step, finished


def fingerprint(config: RunConfig, inputs: Inputs, *, num_workers: int) -> dict[str, Any]:
    """What must not change between the parts of one run: model, data, sharding, every setting of the optimisation.

    Settings that only decide how a step is computed (memory against time) may.
    """
    how = {"gradient_checkpointing", "micro_batch_tokens"}
    return {
        "model": inputs.model.name,  # folders are named by their content
        "data": inputs.train_data.name,
        "dtype": device.dtype_name(config.model.dtype, use_gpu=config.ray.use_gpu),
        "zero_stage": stage_of(config),
        "num_workers": num_workers,
        "train": config.train.model_dump(mode="json", exclude=how),
    }


def seed_everything(seed: int) -> None:
    """The same numbers on every worker: sharded initialisation depends on it."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def write_presence(run: Path, workers: comm.Workers) -> None:
    """Leaves `workers/<rank>.json` with process id and host, for whoever has to look at, or end, one worker."""
    folder = run / "workers"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"rank": workers.rank, "pid": os.getpid(), "host": socket.gethostname()})
    (folder / f"{workers.rank}.json").write_text(text)


def _silent(_: str) -> None:
    """Lines are for worker 0."""


def _resume(
    engine: Engine, inputs: Inputs, workers: comm.Workers, wanted: Mapping[str, Any], tell: Callable[[str], None]
) -> int:
    """Loads the newest whole checkpoint and returns its step; 0 where there is none.

    Raises:
        UserError: the checkpoints in this run folder belong to a run with other data or settings.
    """
    inputs.checkpoints.mkdir(parents=True, exist_ok=True)
    found = checkpoint.latest(inputs.checkpoints, peers=workers, say=tell)
    if found is None:
        return 0
    refuse_other_run(found, wanted)
    engine.load(found.path)
    _load_rng(found.path / f"rng-{workers.rank}.pt")
    tell(f"resuming after step {found.step}")
    return found.step


def refuse_other_run(found: checkpoint.Found, wanted: Mapping[str, Any]) -> None:
    """Going on under other data or settings would be neither run; UserError names what differs."""
    flat_was, flat_now = _flat(found.meta["fingerprint"]), _flat(wanted)
    changed = [key for key in sorted(flat_was | flat_now) if flat_was.get(key) != flat_now.get(key)]
    if changed:
        differences = ", ".join(f"{key}: {flat_was.get(key)} -> {flat_now.get(key)}" for key in changed)
        raise UserError(
            got=f"{found.path} belongs to a run with other settings ({differences})",
            wanted="the settings that the run was started with",
            fix="restore them to resume, or start a new run under another ray.name",
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _save(
    engine: Engine,
    inputs: Inputs,
    workers: comm.Workers,
    config: RunConfig,
    identity: Mapping[str, Any],
    loader: StepPlanner | StreamPlanner,
    watch: validation.Watch | None,
    step: int,
    valid_loss: float | None,
) -> None:
    """Every worker writes its shard and its random state; a validation loss of this step decides on the best one,

    unless a metric of the task does: then the best so far and those that wait for their validation stay.
    """

    def write(folder: Path) -> None:
        engine.save(folder)
        _save_rng(folder / f"rng-{workers.rank}.pt")
        if isinstance(loader, StreamPlanner):
            loader.save(folder)
        if workers.rank == 0:
            export.keep_model_files(inputs.model, folder)

    meta: dict[str, Any] = {"fingerprint": identity}
    if valid_loss is not None and config.checkpoint.keep_best and config.validation.metric is None:
        meta["valid_loss"] = valid_loss
    checkpoint.save(
        inputs.checkpoints,
        step,
        write,
        meta=meta,
        peers=workers,
        keep_last=config.checkpoint.keep_last,
        protect=tuple if watch is None else watch.wanted_steps,
    )


def _save_rng(file: Path) -> None:
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    torch.save(states, file)


def _load_rng(file: Path) -> None:
    states = torch.load(file, weights_only=True, map_location="cpu")
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _validation(
    engine: Engine, inputs: Inputs, config: RunConfig, workers: comm.Workers
) -> Callable[[], tuple[float, int]] | None:
    """The validation loss as a function; its packs are the same at every call."""
    if inputs.valid_data is None or config.validation.every_steps is None:
        return None
    table = TokenTable(inputs.valid_data)
    capacity = max(config.train.micro_batch_tokens, int(table.lengths.max())) if config.data.packing else 0
    share = pack(table.lengths, range(len(table)), capacity, workers.size)[workers.rank]
    supervised = int(table.supervised.sum())
    return lambda: mean_loss(engine, [collate(table, indices) for indices in share], supervised, workers)
