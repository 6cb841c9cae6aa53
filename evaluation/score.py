"""Predictions -> scores.jsonl and metrics.json: every record of the references gets exactly one score.

Stands between predict and compare. Records are streamed in order; a slow task (SQL execution) is spread over
processes, a quick one stays in this process, and the figures are the same either way. What a metric means is the
task's business: this module pairs, counts, averages and says how sure the average is.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from evaluation import jsonl
from evaluation.intervals import Estimate, estimate
from evaluation.pool import ItemScore, TaskSpec, score_pairs
from evaluation.predictions import Predictions, match, read_predictions
from tasks.base import Completion, Record, Task, UserError

log = logging.getLogger(__name__)

_EMPTY = Completion(text="")


@dataclass(frozen=True, slots=True)
class Scores:
    """How one model did on one set of references.

    Attributes:
        task, task_version: what scored it.
        n: number of records scored.
        metrics: metric name -> mean, interval and n, in the task's order.
        errors: error category -> count, in the task's order.
        missing, duplicates, unknown, truncated: counts of predictions (missing ones count as empty answers).
        warnings: what a reader of the figures must know, in words.
        items: one score per record, in the order of the references.
        assisted: metric -> how a judge or an extractor came to it: model, version, failures, calls, cost.
        readings: metric -> per item what the judge or extractor replied.
    """

    task: str
    task_version: str
    n: int
    metrics: Mapping[str, Estimate]
    errors: Mapping[str, int]
    missing: int = 0
    duplicates: int = 0
    unknown: int = 0
    truncated: int = 0
    warnings: tuple[str, ...] = ()
    items: tuple[ItemScore, ...] = ()
    assisted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    readings: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """metrics.json; `assisted` only where a judge or an extractor has run."""
        assisted = {"assisted": {name: dict(facts) for name, facts in self.assisted.items()}} if self.assisted else {}
        return {
            "task": self.task,
            "task_version": self.task_version,
            "n": self.n,
            "metrics": {name: value.as_json() for name, value in self.metrics.items()},
            "missing": self.missing,
            "duplicates": self.duplicates,
            "errors": dict(self.errors),
            **assisted,
        }


def score(
    task: Task,
    records: Iterable[Record],
    predictions: Predictions,
    *,
    limit: int | None = None,
    processes: int | None = None,
    spec: TaskSpec | None = None,
    out: Path | None = None,
) -> Scores:
    """Score the predictions of one model.

    Args:
        task: whose scorer and metrics are used.
        records: the references, all of them; `limit` cuts them here so that later ids are not called unknown.
        predictions: of one model; a record without one is scored as an empty answer.
        limit: the first so many records.
        processes: how many score; None means one per CPU. The result does not depend on it.
        spec: how another process finds `task`; None: by its name and options.
        out: folder that gets scores.jsonl and metrics.json.

    Raises:
        UserError: no records, an id twice in the references, or no prediction that belongs to them.
    """
    scored, known = _split(records, limit)
    matched = match(predictions, [record.id for record in scored], known, task.version)
    for warning in matched.warnings:
        log.warning("%s: %s", predictions.name, warning)
    by_id = predictions.by_id
    pairs = ((record, by_id[record.id].as_completion() if record.id in by_id else _EMPTY) for record in scored)
    items = tuple(score_pairs(task, pairs, processes=processes, spec=spec))
    scores = Scores(
        task=task.name,
        task_version=task.version,
        n=len(items),
        metrics=summarise(task, items),
        errors=count_errors(task, items),
        missing=matched.missing,
        duplicates=predictions.duplicates,
        unknown=matched.unknown,
        truncated=matched.truncated,
        warnings=matched.warnings,
        items=items,
    )
    if out is not None:
        write_scores(out, scores)
    return scores


def score_file(task: Task, records: Iterable[Record], path: Path, **options: Any) -> Scores:
    """`score` for a predictions.jsonl; `options` as there."""
    return score(task, records, read_predictions(path), **options)


def _split(records: Iterable[Record], limit: int | None) -> tuple[list[Record], set[str]]:
    """The records to score and the ids of all."""
    if limit is not None and limit < 1:
        raise UserError(got=f"limit {limit}", wanted="a whole number above 0", fix="leave it out to score all records")
    rows = iter(records)
    scored = list(islice(rows, limit))
    known: set[str] = set()
    for identity in (record.id for group in (scored, rows) for record in group):
        if identity in known:
            raise UserError(got=f"references hold the id {identity!r} twice", wanted="unique ids", fix="rename one row")
        known.add(identity)
    if not scored:
        raise UserError(got="no references", wanted="at least one record", fix="check --references and --split")
    return scored, known


def summarise(task: Task, items: Iterable[ItemScore]) -> dict[str, Estimate]:
    """Mean and interval per metric, in the task's order; an item without a metric does not count towards it."""
    columns = {name: array("d") for name in task.metric_names}
    for item in items:
        for name, value in item.metrics.items():
            if name not in columns:
                raise ValueError(f"task {task.name!r} scored {name!r}, which is not among its metrics {list(columns)}")
            columns[name].append(value)
    return {metric.name: estimate(columns[metric.name], metric.kind) for metric in task.metrics}


def count_errors(task: Task, items: Iterable[ItemScore]) -> dict[str, int]:
    """Items per error category, in the task's order; categories that did not occur are left out."""
    counts = Counter(item.error for item in items if item.error is not None)
    order = {name: place for place, name in enumerate(task.errors)}
    return {name: counts[name] for name in sorted(counts, key=lambda name: (order.get(name, len(order)), name))}


def write_scores(out: Path, scores: Scores) -> None:
    """Write scores.jsonl, readings.jsonl if there are any, then metrics.json: whoever finds that finds them whole."""
    with jsonl.atomic(out / "scores.jsonl") as file:
        for item in scores.items:
            file.write(jsonl.dump(item.as_json()) + "\n")
    (out / "readings.jsonl").unlink(missing_ok=True)
    if scores.readings:
        with jsonl.atomic(out / "readings.jsonl") as file:
            for name, readings in scores.readings.items():
                file.writelines(jsonl.dump({"metric": name, **reading}) + "\n" for reading in readings)
    jsonl.write_text(out / "metrics.json", jsonl.dump(scores.as_json(), indent=2) + "\n")


def read_items(path: Path) -> Iterator[ItemScore]:
    """The lines of a scores.jsonl; UserError naming file and line for one that is not a score."""
    for number, row in jsonl.read_objects(path):
        try:
            yield ItemScore(
                id=str(row["id"]),
                metrics={str(name): float(value) for name, value in row["metrics"].items()},
                parsed=row.get("parsed"),
                error=row.get("error"),
                why=str(row.get("why", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                got=f"{path}, line {number}: {error!r}",
                wanted='{"id", "metrics": {name: number}, "parsed", "error", "why"}',
                fix="write the file with `fulltune score --out`",
            ) from error
