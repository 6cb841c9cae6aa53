"""`fulltune train RECIPE`: prepare, train on Ray, export, and report. The same command resumes a run that was cut off.

python -m ray_jobs.train RECIPE [key=value ...]        (what `ray job submit` starts)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from fulltune import checkpoint, config, device, metrics, provenance, validation
from fulltune.config import RunConfig
from fulltune.plan import hardware
from fulltune.plan.planner import Options
from fulltune.session import STOP_FILE, fingerprint, refuse_other_run
from ray_jobs import auto
from ray_jobs.prepare import Prepared, prepare, task_of
from tasks.base import UserError


def train(
    run: RunConfig,
    *,
    arguments: Sequence[str],
    say: Callable[[str], None],
    nodes: Options | None = None,
    force: bool = False,
) -> Path:
    """Trains until the last step and returns the final checkpoint.

    Args:
        nodes: what a plan shall take the nodes for; by default what a cluster that is joined already has.
        force: start also where by plan nothing fits that `auto` may choose.

    Raises:
        UserError: the run does not fit the cluster, or a file, key or row is wrong.
        ray.train.TrainingFailedError: workers failed more often than `ray.max_failures` allows.
    """
    from ray_jobs import cluster

    run.run_dir.mkdir(parents=True, exist_ok=True)
    run = auto.decided(run, cluster.with_gpu(run.ray, nodes or Options()), fetch=True, say=say, force=force)
    if not Path(run.ray.storage_path).expanduser().is_absolute() and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        say(f"ray.storage_path is relative: files go to {run.run_dir} and vanish with the job's working directory; "
            "set an absolute path that every node sees")  # fmt: skip
    with only_driver(run.run_dir), cluster.connected():
        validation.check(run.validation, task_of(run))
        cluster.refuse_what_cannot_fit(run.ray)
        cluster.refuse_validation_without_room(run)
        prepared = prepare(run, say=say)
        _refuse_other_run(run, prepared)
        _record(run, prepared, arguments)
        steps = total_steps(run, prepared)
        done = _finished_step(run, steps)
        if done is None:
            _fit(run, prepared, steps, say)
        else:
            say(f"{run.ray.name}: all {done} steps were done before")
    return final_checkpoint(run)


def total_steps(run: RunConfig, prepared: Prepared) -> int:
    """Optimizer steps of the whole run."""
    if run.data.loader == "streaming":
        return int(run.train.max_steps or 0)
    rows = int(str(prepared.manifests["train"]["rows"]))
    planned = math.ceil(run.train.num_epochs * math.ceil(rows / run.train.global_batch_size))
    return min(planned, run.train.max_steps or planned)


def final_checkpoint(run: RunConfig) -> Path:
    """The best checkpoint, by the task's metric or the validation loss, where that was taken; else the newest."""
    root = run.run_dir / checkpoint.FOLDER
    chosen = _best_by_metric(run) if run.validation.metric else checkpoint.best(root)
    if run.checkpoint.keep_best and chosen is not None and chosen.exists():
        return chosen
    steps = checkpoint.published(root)
    if not steps:
        raise UserError(
            got=f"no checkpoint in {root}", wanted="a run that has saved", fix="run `fulltune train` with this recipe"
        )
    return root / checkpoint.name(steps[-1])


def _best_by_metric(run: RunConfig) -> Path | None:
    name = str(run.validation.metric)
    higher = bool(task_of(run).metric(name).higher_is_better)
    winner = validation.best(validation.read(run.run_dir), name, higher_is_better=higher)
    return None if winner is None else run.run_dir / checkpoint.FOLDER / checkpoint.name(winner.step)


@contextlib.contextmanager
def only_driver(run_dir: Path) -> Iterator[None]:
    """Holds the run folder: two drivers would cut each other's files. The kernel lets go when a driver dies."""
    with (run_dir / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                got=f"{run_dir} is in use by another driver",
                wanted="one command at a time per run",
                fix="wait for it, end it, or choose another ray.name",
            ) from None
        yield


def _refuse_other_run(run: RunConfig, prepared: Prepared) -> None:
    """Before anything in the run folder changes: is it this run's?"""
    found = checkpoint.newest(run.run_dir / checkpoint.FOLDER)
    if found is not None:
        refuse_other_run(found, fingerprint(run, prepared.inputs))


def _record(run: RunConfig, prepared: Prepared, arguments: Sequence[str]) -> None:
    (run.run_dir / "config.yaml").write_text(config.dump(run))
    (run.run_dir / "inputs.json").write_text(json.dumps(_folders(prepared)))
    provenance.write(run.run_dir, provenance.collect(data=prepared.manifests, arguments=list(arguments)))


def _finished_step(run: RunConfig, steps: int) -> int | None:
    """The last step, where it was taken before; a run that its metric ended early has an earlier one."""
    root = run.run_dir / checkpoint.FOLDER
    last = validation.stopped_early(run.run_dir) or steps
    finished = checkpoint.pointer(root).get("step") == last and last in checkpoint.published(root)
    return last if finished else None


def _fit(run: RunConfig, prepared: Prepared, steps: int, say: Callable[[str], None]) -> None:
    """Hands the run to Ray Train, which starts the workers and restarts them after failures.

    Ray keeps nothing of value: checkpoints are ours, so its own bookkeeping gets a folder of its own per start.
    """
    from ray_jobs import cluster, progress, streaming, validate
    from ray_jobs.worker import train_worker

    settings = run.ray
    trainer = trainer_of(run, train_worker, _payload(run, prepared), **streaming.trainer_arguments(run, prepared))
    say(f"training {settings.name}: {steps} steps on {cluster.shown(settings.num_workers)} workers")
    (run.run_dir / STOP_FILE).unlink(missing_ok=True)
    with progress.following(run.run_dir, steps), _saving_on_sigterm(run.run_dir), validate.beside(run, steps, say=say):
        result: Any = trainer.fit()
    _raise_what_went_wrong(result.return_value)
    if run.validation.metric:
        metrics.add_outcomes(run.run_dir, validation.read(run.run_dir), tensorboard=run.tracking.tensorboard)


def trainer_of(
    run: RunConfig, function: Callable[[dict[str, Any]], object], payload: dict[str, Any], **arguments: Any
) -> Any:
    """Ray Train's trainer for the workers of a run, in their places, environment and process group.

    Args:
        function: what each of them does with `payload`.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from ray_jobs import cluster, standby

    settings = run.ray
    environment = device.worker_environment(
        use_gpu=settings.use_gpu, cpus=settings.cpus_per_worker, deterministic=run.train.deterministic
    )
    if settings.standby:
        environment |= standby.environment(use_gpu=settings.use_gpu)
    run_config: Any = ray.train.RunConfig  # Ray declares the old class where the new one is exported
    return TorchTrainer(
        cast(Callable[[dict[str, Any]], None], function),  # typed as if it could return nothing
        train_loop_config=payload,
        scaling_config=ray.train.ScalingConfig(
            num_workers=cast(int, settings.num_workers),  # a range as well, which its type does not say
            use_gpu=settings.use_gpu,
            resources_per_worker=cluster.worker_resources(settings),
            accelerator_type=settings.accelerator_type and hardware.ray_label(settings.accelerator_type),
        ),
        run_config=run_config(
            name=f"{run.run_dir.name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(run.run_dir / ".ray"),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            worker_runtime_env={"env_vars": environment},
        ),
        torch_config=TorchConfig(
            backend=device.backend(use_gpu=settings.use_gpu), timeout_s=settings.collective_timeout_s
        ),
        **arguments,
    )


class RunEnded(RuntimeError):
    """The run ended before its last step, in a way that retrying at once would not mend."""


@contextlib.contextmanager
def _saving_on_sigterm(run_dir: Path) -> Iterator[None]:
    """A cluster that takes the driver away sends SIGTERM first: the workers save after the step they are in."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: (run_dir / STOP_FILE).touch())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _raise_what_went_wrong(outcome: Any) -> None:
    if "user_error" in outcome:
        raise UserError(*outcome["user_error"])
    if "error" in outcome:
        raise RunEnded(outcome["error"])
    if not outcome["finished"]:
        raise RunEnded(f"stopped on request after step {outcome['step']}; run the same command to go on")


def _payload(run: RunConfig, prepared: Prepared) -> dict[str, Any]:
    return {"config": run.model_dump(mode="json"), "run": str(prepared.inputs.run)} | _folders(prepared)


def _folders(prepared: Prepared) -> dict[str, str | None]:
    inputs = prepared.inputs
    valid = str(inputs.valid_data) if inputs.valid_data else None
    return {"model": str(inputs.model), "train_data": str(inputs.train_data), "valid_data": valid}


if __name__ == "__main__":
    from ray_jobs.cli import main

    raise SystemExit(main(["train", *sys.argv[1:]]))
