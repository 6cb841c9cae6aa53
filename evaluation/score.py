"""Predictions -> scores.jsonl and metrics.json: every record of the references gets exactly one score.

Stands between predict and compare. Records are streamed in order; a slow task (SQL execution) is spread over
processes, a quick one stays in this process, and the figures are the same either way. What a metric means is the
task's business: this module pairs, counts, averages and says how sure the average is.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from evaluation import jsonl
from evaluation.intervals import Estimate, estimate
from evaluation.pool import ItemScore, Pair, TaskSpec, score_pairs
from evaluation.predictions import Matching, Predictions, indexed_predictions
from tasks.base import Record, Task, UserError

READINGS = "readings.jsonl"  # what a judge or an extractor replied; none may stay of an earlier scoring


@dataclass(frozen=True, slots=True)
class Scores:
    """How one model did on one set of references.

    Attributes:
        task, task_version: what scored it.
        n: number of records scored.
        metrics: metric name -> mean, interval and n, in the task's order.
        errors: error category -> count, in the task's order.
        missing, duplicates, unknown, truncated: counts of predictions (missing ones count as empty answers).
        warnings: what a reader of the figures must know, in words; whoever shows the figures shows them.
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
            "unknown": self.unknown,
            "truncated": self.truncated,
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
    matching = Matching(predictions, task.version)
    items = tuple(score_pairs(task, _pairs(records, matching, limit), processes=processes, spec=spec))
    scores = _scores(task, predictions, matching, summarise(task, items), count_errors(task, items), items)
    if out is not None:
        write_scores(out, scores)
    return scores


def score_file(
    task: Task,
    records: Iterable[Record],
    path: Path,
    *,
    limit: int | None = None,
    processes: int | None = None,
    spec: TaskSpec | None = None,
    out: Path | None = None,
) -> Scores:
    """`score` for a predictions.jsonl of any length: what is in memory are ids and figures.

    Completions stay in the file until their record comes, scores are written as they come, and `Scores.items` is empty.
    """
    errors: Counter[str] = Counter()
    with indexed_predictions(path) as predictions, _item_writer(out) as write:
        matching = Matching(predictions, task.version)

        def passing() -> Iterator[ItemScore]:
            for item in score_pairs(task, _pairs(records, matching, limit), processes=processes, spec=spec):
                write(item)
                errors.update([item.error] if item.error is not None else ())
                yield item

        metrics = summarise(task, passing())
        scores = _scores(task, predictions, matching, metrics, _in_order(task, errors), ())
    if out is not None:
        (out / READINGS).unlink(missing_ok=True)
        jsonl.write_text(out / "metrics.json", jsonl.dump(scores.as_json(), indent=2) + "\n")
    return scores


@contextmanager
def _item_writer(out: Path | None) -> Iterator[Callable[[ItemScore], object]]:
    """A function that writes one line of scores.jsonl; the file appears when the block ends well."""
    if out is None:
        yield lambda item: None
        return
    with jsonl.atomic(out / "scores.jsonl") as file:
        yield lambda item: file.write(jsonl.dump(item.as_json()) + "\n")


def _pairs(records: Iterable[Record], matching: Matching, limit: int | None) -> Iterator[Pair]:
    """The records to score with their completions; those beyond the limit are counted and not scored."""
    if limit is not None and limit < 1:
        raise UserError(got=f"limit {limit}", wanted="a whole number above 0", fix="leave it out to score all records")
    rows = iter(records)
    for record in islice(rows, limit):
        yield record, matching.completion(record.id)
    for record in rows:
        matching.know(record.id)


def _scores(
    task: Task,
    predictions: Predictions,
    matching: Matching,
    metrics: Mapping[str, Estimate],
    errors: Mapping[str, int],
    items: tuple[ItemScore, ...],
) -> Scores:
    matched = matching.result()
    return Scores(
        task=task.name,
        task_version=task.version,
        n=matched.scored,
        metrics=metrics,
        errors=errors,
        missing=matched.missing,
        duplicates=predictions.duplicates,
        unknown=matched.unknown,
        truncated=matched.truncated,
        warnings=matched.warnings,
        items=items,
    )


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
    return _in_order(task, Counter(item.error for item in items if item.error is not None))


def _in_order(task: Task, counts: Mapping[str, int]) -> dict[str, int]:
    order = {name: place for place, name in enumerate(task.errors)}
    return {name: counts[name] for name in sorted(counts, key=lambda name: (order.get(name, len(order)), name))}


def write_scores(out: Path, scores: Scores) -> None:
    """Write scores.jsonl, readings.jsonl if there are any, then metrics.json: whoever finds that finds them whole."""
    with jsonl.atomic(out / "scores.jsonl") as file:
        for item in scores.items:
            file.write(jsonl.dump(item.as_json()) + "\n")
    (out / READINGS).unlink(missing_ok=True)
    if scores.readings:
        with jsonl.atomic(out / READINGS) as file:
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
