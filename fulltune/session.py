"""One worker's part in a run: build the engine, resume if there is something to resume, train, log, save.

Consumes the records of `fulltune.train.fit`. Knows ranks and disks but not Ray, so the same function runs under Ray
Train, under torch's own launcher, and in a test. Everything it needs was prepared beforehand and lies in folders.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tasks
from fulltune import checkpoint, comm, device, guards, meter, metrics, mirror, state, validation
from fulltune.batches import Loader, StepPlanner, collate
from fulltune.config import RunConfig
from fulltune.data import TokenTable
from fulltune.engine import Engine, build, stage_of
from fulltune.journal import Journal
from fulltune.metrics import MetricsLog
from fulltune.packing import pack
from fulltune.saver import Saver
from fulltune.stream import Stream, StreamPlanner
from fulltune.train import Event, NonFinite, SaveDue, Schedule, Skipped, StepDone, Stopped, Validated, fit, mean_loss
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
        say: prints a line for the user; called on worker 0 only, except for a phase that lasts too long.
        stream: this worker's share of the training data where `data.loader` is streaming.

    Raises:
        NonFinite: a loss or gradient is not finite; `nonfinite-<step>.json` in the run folder names the records.
        Disagreement: the workers do not hold the same data or plan.
        CollectiveTimeout: a worker never came.
    """
    phases = guards.Phases(workers.rank, limit_s=config.ray.collective_timeout_s / 2, say=say)
    with phases.named():
        return _run(config, inputs, workers, phases, stream, tell=say if workers.rank == 0 else _silent)


def _run(
    config: RunConfig,
    inputs: Inputs,
    workers: comm.Workers,
    phases: guards.Phases,
    stream: Stream | None,
    *,
    tell: Callable[[str], None],
) -> Result:
    began = time.perf_counter()
    seed_everything(config.train.seed)
    identity = fingerprint(config, inputs)
    phases.enter("the comparison of plans")
    workers.agree(_flat(identity))
    figures = partial(_meter, config, inputs, workers)
    with metrics.paid_for(inputs.run, figures, began) if workers.rank == 0 else contextlib.nullcontext():
        phases.enter("loading the model")
        engine = build(config, inputs.model, num_workers=workers.size)
        workers.bound(config.ray.collective_timeout_s)
        loader = _loader(config, inputs, workers, engine, stream, tell)
        phases.enter("resuming")
        copies = _mirror(config, inputs, workers, tell)
        step, losses = _resume(engine, loader, inputs, workers, identity, config.train.seed, tell)
        workers.agree(loader.outlook(step + 1))
    spikes = guards.SpikeWatch(config.train.spike_window, config.train.spike_threshold, losses)
    watch = _watch(config, inputs, workers, keep_to=step)
    saver = _saver(config, inputs, workers, copies, watch, tell)

    def stops() -> bool:
        return (inputs.run / STOP_FILE).exists() or (watch is not None and watch.exhausted())

    skipped = metrics.skips(inputs.run, until=step)  # before the log is cut back
    journal = None
    if workers.rank == 0:
        log = _log(config, inputs, workers, step, loader.total_steps, began)
        journal = Journal(inputs.run, log, watch, tell)
    events = fit(
        engine,
        phases.during("step {0}", loader.step),
        loader.load,
        config.train,
        Schedule(
            total_steps=loader.total_steps,
            save_every=config.checkpoint.every_steps,
            validate_every=config.validation.every_steps,
            save_when_validating=config.validation.metric is not None,
        ),
        workers=workers,
        validate=_validation(engine, inputs, config, workers, phases),
        stop_requested=lambda: stops() or saver.failed(),
        first_step=step + 1,
        skipped=skipped,
        watch=spikes,
    )
    with _waited_for(saver), contextlib.nullcontext() if journal is None else contextlib.closing(journal.log):
        take = partial(state.take, engine, loader, inputs.model, workers)
        save = phases.during("the save after step {0}", partial(_save, saver, take, config, identity, spikes))
        last, finished = _consume(events, save, journal, loader, step)
    finished = finished or _ended_early(config, inputs, workers, watch, last, tell)
    if not finished:
        tell(f"stopped after step {last}; run the same command to go on")
    return Result(step=last, total_steps=loader.total_steps, finished=finished)


def _loader(
    config: RunConfig,
    inputs: Inputs,
    workers: comm.Workers,
    engine: Engine,
    stream: Stream | None,
    tell: Callable[[str], None],
) -> Loader:
    if stream is not None:
        return StreamPlanner(stream, config.data, config.train, workers, device=engine.device, say=tell)
    table = TokenTable(inputs.train_data)
    return StepPlanner(table, config.train, config.data.packing, workers.rank, workers.size)


def _mirror(
    config: RunConfig, inputs: Inputs, workers: comm.Workers, tell: Callable[[str], None]
) -> mirror.Mirror | None:
    """The second home of the checkpoints, after what this run folder lacks was fetched from it."""
    if not config.checkpoint.upload_to:
        return None
    copies = mirror.connect(config.checkpoint.upload_to, inputs.run.name)
    copies.restore(inputs.checkpoints, workers, tell)
    return copies


def _saver(
    config: RunConfig,
    inputs: Inputs,
    workers: comm.Workers,
    copies: mirror.Mirror | None,
    watch: validation.Watch | None,
    tell: Callable[[str], None],
) -> Saver:
    protect: Callable[[], Collection[int]] = tuple if watch is None else watch.wanted_steps
    saving = config.checkpoint
    return Saver(inputs.checkpoints, workers, saving.keep_last, saving.asynchronous, tell, copies, protect)


def _ended_early(
    config: RunConfig,
    inputs: Inputs,
    workers: comm.Workers,
    watch: validation.Watch | None,
    last: int,
    tell: Callable[[str], None],
) -> bool:
    """Whether the run is complete because its metric got no better; all workers agree."""
    if not any(workers.gather(watch is not None and watch.exhausted())):
        return False
    if workers.rank == 0:
        validation.write_early_stop(inputs.run, last)
        tell(f"ended after step {last}: {config.validation.metric} got no better")
    return True


@contextlib.contextmanager
def _waited_for(saver: Saver) -> Iterator[None]:
    """The run ends after its last save; where training fails, one that is under way may still end."""
    try:
        yield
    except BaseException:
        saver.settle()
        raise
    saver.wait()


def _watch(config: RunConfig, inputs: Inputs, workers: comm.Workers, *, keep_to: int) -> validation.Watch | None:
    """Worker 0's eye on the validations beside training, without those of steps that will be taken again."""
    if workers.rank != 0 or config.validation.metric is None:
        return None
    validation.forget_after(inputs.run, keep_to)
    return validation.Watch(inputs.run, config.validation, tasks.get(config.task, **config.task_options))


def _meter(config: RunConfig, inputs: Inputs, workers: comm.Workers, total_steps: int = 0) -> meter.Meter:
    return meter.for_run(
        inputs.model,
        gpu_name=device.gpu_name(device.current_gpu()) if config.ray.use_gpu else None,
        dtype=device.dtype_name(config.model.dtype, use_gpu=config.ray.use_gpu),
        workers=workers.size,
        total_steps=total_steps,
        usd_per_hour=config.ray.usd_per_gpu_hour,
    )


def _log(
    config: RunConfig, inputs: Inputs, workers: comm.Workers, step: int, total_steps: int, began: float
) -> MetricsLog:
    return MetricsLog(
        inputs.run,
        meter=_meter(config, inputs, workers, total_steps),
        keep_to=step,
        began=began,
        every=config.tracking.log_every_steps,
        tensorboard=config.tracking.tensorboard,
    )


def _consume(
    events: Iterator[Event],
    save: Callable[[int, bool, float | None], None],
    journal: Journal | None,
    loader: Loader,
    step: int,
) -> tuple[int, bool]:
    """Notes and saves what the loop yields; returns the last step, and whether it was the planned one."""
    valid_loss: float | None = None
    finished = True
    try:
        for event in events:
            examples = loader.records(event.example_indices) if isinstance(event, Skipped) else []
            if journal is not None:
                journal.note(event, examples)
            match event:
                case StepDone() | Skipped():
                    step, valid_loss = event.step, None
                case Validated():
                    valid_loss = event.loss
                case SaveDue():
                    save(event.step, event.last, valid_loss)
                case Stopped():
                    finished = False
    except NonFinite as error:
        examples = loader.records(error.example_indices)
        if journal is not None:
            journal.fault(error, examples)
        raise
    return step, finished


def fingerprint(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    """What must not change between the parts of one run: model, data, sharding, every setting of the optimisation.

    Settings that only decide how a step is computed (memory against time) or what stops a run may, and so may the
    number of workers.
    """
    how = {"gradient_checkpointing", "micro_batch_tokens", "loss_chunk_tokens", "deterministic"} | guards.SETTINGS
    return {
        "model": inputs.model.name,  # folders are named by their content
        "data": inputs.train_data.name,
        "dtype": device.dtype_name(config.model.dtype, use_gpu=config.ray.use_gpu),
        "zero_stage": stage_of(config),
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
    engine: Engine,
    loader: Loader,
    inputs: Inputs,
    workers: comm.Workers,
    wanted: Mapping[str, Any],
    seed: int,
    tell: comm.Say,
) -> tuple[int, list[float]]:
    """Loads the newest whole checkpoint and returns its step and the latest losses; 0 where there is none.

    Raises:
        UserError: the checkpoints in this run folder belong to a run with other data or settings.
    """
    found = checkpoint.latest(inputs.checkpoints, peers=workers, say=tell)
    if found is None:
        return 0, []
    refuse_other_run(found, wanted)
    state.restore(engine, found, workers, seed=seed, say=tell)
    loader.restore(found.path)
    tell(f"resuming after step {found.step}")
    return found.step, found.meta.get("losses", [])


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
    saver: Saver,
    take: Callable[[Path], state.WorkerState],
    config: RunConfig,
    identity: Mapping[str, Any],
    spikes: guards.SpikeWatch,
    step: int,
    last: bool,
    valid_loss: float | None,
) -> None:
    """Saves the state after `step`; a validation loss of this step decides on the best one, unless a metric of the task

    does: then the best so far and those that wait for their validation stay.
    """
    meta: dict[str, Any] = {"fingerprint": identity, "losses": spikes.losses}
    if valid_loss is not None and config.checkpoint.keep_best and config.validation.metric is None:
        meta["valid_loss"] = valid_loss
    saver.save(step, take, meta=meta, last=last)


def _validation(
    engine: Engine, inputs: Inputs, config: RunConfig, workers: comm.Workers, phases: guards.Phases
) -> Callable[[], tuple[float, int]] | None:
    """The validation loss as a function; its packs are the same at every call."""
    if inputs.valid_data is None or config.validation.every_steps is None:
        return None
    table = TokenTable(inputs.valid_data)
    capacity = max(config.train.token_budget, int(table.lengths.max())) if config.data.packing else 0
    share = pack(table.lengths, range(len(table)), capacity, workers.size)[workers.rank]
    supervised = int(table.supervised.sum())
    return phases.during(
        "validation", lambda: mean_loss(engine, [collate(table, indices) for indices in share], supervised, workers)
    )
