"""Predictions -> scores.jsonl and metrics.json: every record of the references gets exactly one score.

Stands between predict and compare. Records are streamed in order and their scores written as they come, so memory
grows with the ids and the figures, not with the texts; a slow task (SQL execution) is spread over processes, a quick
one stays in this process, and the figures are the same either way. What a metric means is the
task's business: this module pairs, counts, averages and says how sure the average is.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from evaluation import jsonl
from evaluation.intervals import Estimate, estimate
from evaluation.pool import ItemScore, Pair, TaskSpec, score_pairs
from evaluation.predictions import Matching, Predictions, indexed_predictions
from tasks.base import Record, Task, UserError

log = logging.getLogger(__name__)


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
        items: one score per record, in the order of the references; empty where they were only written.
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

    def as_json(self) -> dict[str, Any]:
        """metrics.json."""
        return {
            "task": self.task,
            "task_version": self.task_version,
            "n": self.n,
            "metrics": {name: value.as_json() for name, value in self.metrics.items()},
            "missing": self.missing,
            "duplicates": self.duplicates,
            "errors": dict(self.errors),
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
    keep_items: bool = True,
) -> Scores:
    """Score the predictions of one model; records are taken one by one and scores written as they come.

    Args:
        task: whose scorer and metrics are used.
        records: the references, all of them; `limit` cuts them here so that later ids are not called unknown.
        predictions: of one model; a record without one is scored as an empty answer.
        limit: the first so many records.
        processes: how many score; None means one per CPU. The result does not depend on it.
        spec: how another process finds `task`; None: by its name and options.
        out: folder that gets scores.jsonl and metrics.json.
        keep_items: False leaves `Scores.items` empty, for callers that need the figures and files alone.

    Raises:
        UserError: no records, an id twice in the references, or no prediction that belongs to them.
    """
    matching, tally = Matching(predictions, task.version), Tally(task)
    items: list[ItemScore] = []
    with _item_writer(out) as write:
        for item in score_pairs(task, _pairs(records, matching, limit), processes=processes, spec=spec):
            tally.add(item)
            write(item)
            if keep_items:
                items.append(item)
        matched = matching.result()
    for warning in matched.warnings:
        log.warning("%s: %s", predictions.name, warning)
    scores = Scores(
        task=task.name,
        task_version=task.version,
        n=tally.n,
        metrics=tally.metrics(),
        errors=tally.errors(),
        missing=matched.missing,
        duplicates=predictions.duplicates,
        unknown=matched.unknown,
        truncated=matched.truncated,
        warnings=matched.warnings,
        items=tuple(items),
    )
    if out is not None:
        jsonl.write_text(out / "metrics.json", jsonl.dump(scores.as_json(), indent=2) + "\n")
    return scores


def score_file(task: Task, records: Iterable[Record], path: Path, **options: Any) -> Scores:
    """`score` for a predictions.jsonl, whose completions stay in the file; `options` as there."""
    with indexed_predictions(path) as predictions:
        return score(task, records, predictions, **options)


def _pairs(records: Iterable[Record], matching: Matching, limit: int | None) -> Iterator[Pair]:
    """The records to score with their completions; those beyond the limit are counted and not scored."""
    if limit is not None and limit < 1:
        raise UserError(got=f"limit {limit}", wanted="a whole number above 0", fix="leave it out to score all records")
    rows = iter(records)
    for record in islice(rows, limit):
        yield record, matching.completion(record.id)
    for record in rows:
        matching.know(record.id)


@contextmanager
def _item_writer(out: Path | None) -> Iterator[Callable[[ItemScore], object]]:
    """A function that writes one line of scores.jsonl; the file appears when the block ends well."""
    if out is None:
        yield lambda item: None
        return
    with jsonl.atomic(out / "scores.jsonl") as file:
        yield lambda item: file.write(jsonl.dump(item.as_json()) + "\n")


class Tally:
    """Adds up scores item by item: eight bytes per item and metric."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._columns = {name: array("d") for name in task.metric_names}
        self._errors: Counter[str] = Counter()
        self.n = 0

    def add(self, item: ItemScore) -> None:
        """Count one item; an item without a metric does not count towards it."""
        self.n += 1
        if item.error is not None:
            self._errors[item.error] += 1
        for name, value in item.metrics.items():
            if name not in self._columns:
                known = list(self._columns)
                raise ValueError(f"task {self._task.name!r} scored {name!r}, which is not among its metrics {known}")
            self._columns[name].append(value)

    def metrics(self) -> dict[str, Estimate]:
        """Mean and interval per metric, in the task's order."""
        return {metric.name: estimate(self._columns[metric.name], metric.kind) for metric in self._task.metrics}

    def errors(self) -> dict[str, int]:
        """Items per error category, in the task's order; categories that did not occur are left out."""
        order = {name: place for place, name in enumerate(self._task.errors)}
        names = sorted(self._errors, key=lambda name: (order.get(name, len(order)), name))
        return {name: self._errors[name] for name in names}


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
