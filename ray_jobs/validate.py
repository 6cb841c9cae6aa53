"""Validation by the task's metric: a thread of the driver that hands new checkpoints to a bounded Ray task of ours.

    checkpoints/step-N -> link -> [Ray task: export, generate, score] -> validation/step-N.json

Ray Train's own ValidationConfig ends the run when a validation dies of memory or of a lost node; here every failure
is a record. At most one validation runs at a time; of several that wait, the newest is taken and the others are
recorded as skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from fulltune import checkpoint, device, validation
from fulltune.config import RunConfig
from fulltune.validation import Outcome
from ray_jobs.prepare import load_split, task_of

POLL_S = 1.0


@contextlib.contextmanager
def beside(run: RunConfig, total_steps: int, *, say: Callable[[str], None]) -> Iterator[None]:
    """Validates the checkpoints of a run while the block trains, and what is left of them when it has ended."""
    if run.validation.metric is None:
        yield
        return
    done = threading.Event()
    since = max(checkpoint.published(run.run_dir / checkpoint.FOLDER), default=0)
    validator = _Validator(run=run, total_steps=total_steps, done=done, say=say, since=since)
    thread = threading.Thread(target=validator.work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        # at most the validation that runs and the newest that waits are left
        thread.join(timeout=2 * run.validation.timeout_s + 60)


@dataclass(frozen=True, slots=True)
class _Validator:
    """Attributes: `since`, the newest checkpoint when this driver began."""

    run: RunConfig
    total_steps: int
    done: threading.Event
    say: Callable[[str], None]
    since: int

    def work(self) -> None:
        """Until training has ended and nothing is pending; a disk that fails for a moment is tried again."""
        while True:
            ended = self.done.is_set()
            try:
                if self._takes_newest():
                    continue
            except OSError as error:
                self.say(f"validation: {error}; it is tried again")
            if ended:
                return
            self.done.wait(POLL_S)

    def _takes_newest(self) -> bool:
        """Validates the newest checkpoint that waits; False if none does."""
        step = self._next(running=None)
        if step is None:
            return False
        try:
            self._record(self._validate(step))
        finally:  # only now: as long as it is there, the checkpoint stays
            shutil.rmtree(validation.scratch(self.run.run_dir, step), ignore_errors=True)
        return True

    def _next(self, *, running: int | None) -> int | None:
        """The newest checkpoint that waits. Older ones, on disk or gone already, are recorded as skipped."""
        run, every = self.run.run_dir, self.run.validation.every_steps
        assert every is not None, "checked by the configuration"
        steps = checkpoint.published(run / checkpoint.FOLDER)
        waiting = validation.pending(run, steps, every, self.total_steps)
        gone = {step for step in range(every, max(steps, default=0), every) if step > self.since} - set(steps)
        unknown = {step for step in gone if not validation.file_of(run, step).exists()}
        for step in sorted((unknown | set(waiting[:-1])) - {running}):
            self._record(_not_done(step, "skipped", time.time(), "a newer checkpoint was ready first"))
        return waiting[-1] if waiting else None

    def _record(self, outcome: Outcome) -> None:
        validation.write(self.run.run_dir, outcome)
        metric = self.run.validation.metric
        told = f"{metric} {outcome.metrics[metric]:.3f}" if outcome.status == "done" and metric else outcome.why
        self.say(f"validation of step {outcome.step} {outcome.status}: {told}")

    def _validate(self, step: int) -> Outcome:
        """Runs the Ray task and waits for it, within bounds."""
        started = time.time()
        source = self.run.run_dir / checkpoint.FOLDER / checkpoint.name(step)
        linked = validation.scratch(self.run.run_dir, step) / checkpoint.name(step)
        settings = self.run.validation
        environment = {"env_vars": device.worker_environment(use_gpu=settings.gpus > 0)}
        reference: Any = None
        try:
            task: Any = ray.remote(max_calls=1, max_retries=0)(validate_checkpoint).options(
                num_cpus=settings.cpus, num_gpus=settings.gpus, runtime_env=environment
            )
            _link(source, linked)
            reference = task.remote(self.run.model_dump(mode="json"), str(linked))
            while not ray.wait([reference], timeout=POLL_S)[0]:
                if time.time() - started > settings.timeout_s:
                    ray.cancel(reference, force=True)
                    return _not_done(
                        step, "failed", started, f"gave up after validation.timeout_s={settings.timeout_s}"
                    )
                self._next(running=step)
            metrics, rows = ray.get(reference)
        except Exception as error:  # whatever a validation dies of, the run goes on
            if not linked.exists() and not source.exists():
                return _not_done(step, "skipped", started, "a newer checkpoint was ready first")
            return _not_done(step, "failed", started, _first_line(error))
        return Outcome(step, "done", started, time.time(), n=rows, metrics=metrics)


def _not_done(step: int, status: Any, started: float, why: str) -> Outcome:
    return Outcome(step, status, started, time.time(), why=why)


def _first_line(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip().split("\n")[0]
    return f"{type(cause).__name__}: {text}"


def _link(source: Path, target: Path) -> None:
    """A second name for the files of a checkpoint, so that it may be pruned while it is being validated."""
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir(parents=True)
    shutil.copytree(source, target, copy_function=os.link)


def validate_checkpoint(payload: dict[str, Any], folder: str) -> tuple[dict[str, float], int]:
    """The Ray task: means of the task's metrics over the validation rows, and how many rows there were."""
    from evaluation.predictions import Prediction, Predictions
    from evaluation.score import score
    from fulltune import config, export, generate, quiet

    quiet.libraries()
    quiet.transformers()
    run = config.resolve(payload, origin="the resolved configuration")
    task, use_gpu = task_of(run), run.validation.gpus > 0
    dtype = device.dtype_name(run.model.dtype, use_gpu=use_gpu)
    model = export.export(Path(folder), Path(folder).parent / "export", task, dtype=dtype, card="")
    generator = generate.load(model, task, prompt_style="structured", use_gpu=use_gpu)
    records = load_split(run, task, "valid", run.validation.limit, say=lambda _: None)
    prompts = [generator.prompt(record, []) for record in records]
    limits = {"max_new_tokens": task.max_new_tokens, "batch_tokens": run.validation.batch_tokens}
    answers = [answer for finished in generator.answers(prompts, **limits) for answer in finished]
    by_id = {a.id: Prediction(id=a.id, completion=a.text, finish_reason=a.finish_reason) for a in answers}
    scores = score(task, records, Predictions(name="validation", by_id=by_id), processes=1)
    means = {name: estimate.mean for name, estimate in scores.metrics.items()}
    return {name: mean for name, mean in means.items() if mean is not None}, len(records)
