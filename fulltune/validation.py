"""Validation by the task's own metric, beside training: the files through which the run and its validator speak.

    checkpoint published -> (ray_jobs.validate: export, generate, score) -> validation/step-N.json
                         -> worker 0: metrics.jsonl, early stopping        -> driver: the best checkpoint

The validator never touches the sharded model and the workers never wait for it. A validation that failed, ran out of
time or was overtaken by a newer checkpoint is a record like any other; the run goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from fulltune import checkpoint
from fulltune.config import ValidationConfig
from tasks.base import Task, UserError

FOLDER = "validation"
EARLY_STOP = "early-stop.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the validation of one checkpoint.

    Attributes:
        metrics: mean per metric of the task, over `n` rows; empty unless `status` is "done".
        started, ended: seconds since the epoch.
        why: for a validation that failed or was skipped.
    """

    step: int
    status: Literal["done", "failed", "skipped"]
    started: float
    ended: float
    n: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    why: str = ""


def check(config: ValidationConfig, task: Task) -> None:
    """Refuses, before anything is spent, a metric that cannot choose a checkpoint."""
    if config.metric is None:
        return
    usable = [metric.name for metric in task.metrics if metric.higher_is_better is not None]
    if config.metric not in usable:
        raise UserError(
            got=f"validation.metric={config.metric}",
            wanted=f"a metric of task {task.name} that has a better and a worse: {', '.join(usable)}",
            fix="name one of them, or leave it out to validate by loss",
        )


def file_of(run: Path, step: int) -> Path:
    """Where the outcome of a step stands once it is known."""
    return run / FOLDER / f"{checkpoint.name(step)}.json"


def write(run: Path, outcome: Outcome) -> None:
    """Publishes an outcome whole."""
    path = file_of(run, outcome.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(asdict(outcome), indent=1))
    os.replace(temporary, path)


def read(run: Path) -> list[Outcome]:
    """All outcomes of a run, by step."""
    return [_parse(path) for path in files(run)]


def files(run: Path) -> list[Path]:
    """The files of the outcomes that are known, by step."""
    return sorted((run / FOLDER).glob("step-*.json"))


def _parse(path: Path) -> Outcome:
    return Outcome(**json.loads(path.read_text()))


def forget_after(run: Path, step: int) -> None:
    """Drops what is said of steps that will be taken again."""
    for outcome in read(run):
        if outcome.step > step:
            file_of(run, outcome.step).unlink()
    stop = run / FOLDER / EARLY_STOP
    if stop.exists() and json.loads(stop.read_text())["step"] > step:
        stop.unlink()


def pending(run: Path, steps: Sequence[int], every: int, last: int) -> list[int]:
    """Of the published `steps`, those whose validation is due and whose outcome is not known."""
    return [step for step in steps if (step % every == 0 or step == last) and not _is_known(run, step)]


def _is_known(run: Path, step: int) -> bool:
    """Whether the outcome is of the checkpoint that lies there now; a step taken again is validated again."""
    manifest = run / checkpoint.FOLDER / checkpoint.name(step) / checkpoint.MANIFEST
    outcome = _changed(file_of(run, step))
    return outcome is not None and outcome >= (_changed(manifest) or 0)


def _changed(path: Path) -> int | None:
    """When a file was written, in ns; None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def scratch(run: Path, step: int) -> Path:
    """Where a checkpoint is linked to, and exported, while it is being validated."""
    return run / FOLDER / f".{checkpoint.name(step)}"


def best(outcomes: Sequence[Outcome], metric: str, *, higher_is_better: bool) -> Outcome | None:
    """The best outcome; of equal ones the earliest."""
    done = [outcome for outcome in outcomes if outcome.status == "done" and metric in outcome.metrics]
    sign = 1.0 if higher_is_better else -1.0
    return max(done, key=lambda outcome: (sign * outcome.metrics[metric], -outcome.step), default=None)


def out_of_patience(outcomes: Sequence[Outcome], metric: str, *, higher_is_better: bool, patience: int) -> bool:
    """Whether the last `patience` validations brought nothing better than what was there before them."""
    winner = best(outcomes, metric, higher_is_better=higher_is_better)
    if winner is None:
        return False
    later = [outcome for outcome in outcomes if outcome.status == "done" and outcome.step > winner.step]
    return len(later) >= patience


def stopped_early(run: Path) -> int | None:
    """The step after which a run ended because its metric got no better; None if it did not."""
    path = run / FOLDER / EARLY_STOP
    return int(json.loads(path.read_text())["step"]) if path.exists() else None


def write_early_stop(run: Path, step: int) -> None:
    """Says that the run is complete although steps are left."""
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    (run / FOLDER / EARLY_STOP).write_text(json.dumps({"step": step}))


class Watch:
    """Worker 0's view of the outcomes while it trains; asked at every step, so each file is read once."""

    def __init__(self, run: Path, config: ValidationConfig, task: Task) -> None:
        assert config.metric is not None, "made for runs that validate by a metric"
        assert config.every_steps is not None, "checked by the configuration"
        self._run, self._metric, self._patience, self._every = run, config.metric, config.patience, config.every_steps
        self._higher = bool(task.metric(config.metric).higher_is_better)
        self._known: dict[Path, tuple[int, Outcome]] = {}
        self._told = {(outcome.step, outcome.ended) for outcome in self._outcomes()}

    def news(self) -> list[Outcome]:
        """Outcomes that have come in since the last call."""
        new = [outcome for outcome in self._outcomes() if (outcome.step, outcome.ended) not in self._told]
        self._told |= {(outcome.step, outcome.ended) for outcome in new}
        return new

    def exhausted(self) -> bool:
        """Whether the run has waited long enough for a better value."""
        return self._patience is not None and out_of_patience(
            self._outcomes(), self._metric, higher_is_better=self._higher, patience=self._patience
        )

    def wanted_steps(self) -> list[int]:
        """Checkpoints that must stay: the best so far, the one that is being validated, and the next to be.

        Those in between will be recorded as skipped; that of the last step is the newest and stays anyway. What waits
        is asked before what is known: an outcome that comes in meanwhile is then in one of the two, and not in none.
        """
        steps = checkpoint.published(self._run / checkpoint.FOLDER)
        waiting = pending(self._run, steps, self._every, last=0)
        kept = [step for step in waiting if step == waiting[-1] or scratch(self._run, step).exists()]
        winner = best(self._outcomes(), self._metric, higher_is_better=self._higher)
        return kept if winner is None else [*kept, winner.step]

    def _outcomes(self) -> list[Outcome]:
        for path in files(self._run):
            changed = _changed(path)
            if changed is not None and self._known.get(path, (None, None))[0] != changed:
                self._known[path] = changed, _parse(path)
        return [self._known[path][1] for path in sorted(self._known)]
