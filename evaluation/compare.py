"""Several models on the same records -> results.json, report.html, report.md and plots.

The last stage: scores every entry with the task's scorer, tests the models against each other item by item, picks
the examples that went worst, and hands the `Comparison` to the report. `evaluation.runs` finds the entries in run
folders; the runner of `benchmark` and `demo` passes them directly.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import stdev
from typing import Any, cast, get_args

from evaluation import economy, examples, jsonl, report
from evaluation.comparison import Clean, Comparison, Entry, LeakCheck, Model, Pair, Role, Tokens, best
from evaluation.intervals import Estimate, estimate
from evaluation.judge import Reader, read_all
from evaluation.paired import PairedTest, holm, paired_test
from evaluation.pool import ItemScore, TaskSpec, score_pair
from evaluation.power import Detectable, detectable_mean, detectable_proportion
from evaluation.predictions import Prediction, read_predictions
from evaluation.score import Scores, count_errors, read_items, score, summarise
from evaluation.series import series
from tasks.base import Completion, Metric, Record, Task, UserError

log = logging.getLogger(__name__)

Readers = Callable[[str], Sequence[Reader]]

_TUNED_WORDS = {"tuned", "finetuned", "ft", "sft"}
_BASE_WORDS = {"base", "untuned", "pretrained"}


def no_readers(label: str) -> Sequence[Reader]:
    """No judge and no extractor, for any row."""
    return ()


def compare(
    entries: Sequence[Entry],
    *,
    task: Task,
    records: Sequence[Record],
    out: Path,
    title: str | None = None,
    loss_curve: Sequence[Mapping[str, Any]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    source: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    leaks: Mapping[str, str] | None = None,
    checked: LeakCheck | None = None,
    usd_per_worker_hour: float | None = None,
    processes: int | None = None,
    spec: TaskSpec | None = None,
    readers: Readers = no_readers,
) -> dict[str, Any]:
    """Score the entries, compare them and write the report.

    Args:
        entries: the rows, in the order of the tables.
        task: that they answer.
        records: the references, all of them; `limit` takes the first so many.
        out: folder for results.json, report.html, report.md and plots/*.png.
        title: of the report; None: made from the task.
        loss_curve: lines of a run's metrics.jsonl (step, loss ...), drawn when there are any.
        provenance: versions, git sha, hardware, command, configuration; printed as it is.
        source, split: where the records came from; the report says so, and says that bundled data is generated.
        leaks: record id -> why it may have been seen in training; the report flags them and scores without them too.
        checked: what was looked through for leaks; the report says it, and says where nothing was.
        usd_per_worker_hour: price of a worker (a GPU, or a CPU process), for costs of tuning and of own answers.
        limit, processes, spec: as in `score`.
        readers: label of a row -> the judge and the extractor that read its answers.

    Returns:
        the content of results.json.

    Raises:
        UserError: no entry, a label twice, a file that cannot be read or that belongs to other records.
    """
    comparison = measure(
        entries,
        task=task,
        records=records,
        title=title or f"{task.name}: {len(entries)} models compared",
        loss_curve=loss_curve or (),
        provenance=provenance or {},
        source=source,
        split=split,
        limit=limit,
        leaks=leaks,
        checked=checked,
        usd_per_worker_hour=usd_per_worker_hour,
        processes=processes,
        spec=spec,
        readers=readers,
    )
    return report.write(comparison, out)


def measure(
    entries: Sequence[Entry],
    *,
    task: Task,
    records: Sequence[Record],
    title: str,
    loss_curve: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
    source: str | None,
    split: str | None,
    limit: int | None,
    processes: int | None,
    spec: TaskSpec | None,
    readers: Readers = no_readers,
    leaks: Mapping[str, str] | None = None,
    checked: LeakCheck | None = None,
    usd_per_worker_hour: float | None = None,
) -> Comparison:
    """Everything of `compare` but the writing."""
    _check_labels(entries)
    score_as: dict[str, Any] = {"limit": limit, "processes": processes, "spec": spec, "price": usd_per_worker_hour}
    task, rows = _with_assisted(task, [_model(entry, task, records, readers=readers, **score_as) for entry in entries])
    metric = headline_metric(task)
    subject = next((row for row in reversed(rows) if row.role == "tuned"), rows[-1])
    others = [row for row in rows if row is not subject]
    bases = [row for row in others if row.role == "base"]
    texts = examples.texts(task, records[:limit])
    ranking = examples.worst_first(task, subject, others)
    flagged = {record.id: leaks[record.id] for record in records[:limit] if record.id in leaks} if leaks else {}
    usages = {row.label: row.usage for row in others}
    return Comparison(
        title=title,
        task=task,
        n=subject.scores.n,
        limit=limit if limit is not None and limit < len(records) else None,
        source=source,
        split=split,
        models=rows,
        subject=subject,
        base=best(bases, metric, task.metrics) or (others[0] if others else None),
        metric=metric,
        pairs=tuple(pair for m in task.metrics if m.higher_is_better is not None for pair in paired_tests(rows, m)),
        worst=examples.worst(texts, ranking, [subject, *others]),
        inputs=texts.inputs,
        golds=texts.golds,
        order=ranking.places,
        series=series(rows, headline_metrics(task)),
        economy=economy.economy(subject.details, subject.usage, usages, usd_per_worker_hour),
        leaks=flagged,
        checked=checked or LeakCheck(),
        clean=tuple(_clean(row, metric, flagged) for row in rows) if flagged else (),
        loss_curve=loss_curve,
        provenance=provenance,
    )


def headline_metrics(task: Task) -> list[Metric]:
    """The metrics that a table shows first."""
    return [metric for metric in task.metrics if metric.headline] or [headline_metric(task)]


def headline_metric(task: Task) -> Metric:
    """The metric that stands for the task: the first marked headline, else the first where more is better."""
    marked = [metric for metric in task.metrics if metric.headline]
    upward = [metric for metric in task.metrics if metric.higher_is_better]
    return (marked or upward or list(task.metrics))[0]


def paired_tests(models: Sequence[Model], metric: Metric) -> list[Pair]:
    """Paired tests of every two models on one metric, corrected by Holm over these pairs."""
    tests: list[tuple[str, str, PairedTest, Detectable]] = []
    for a, b in combinations(models, 2):
        both = [
            (x.metrics[metric.name], y.metrics[metric.name])
            for x, y in zip(a.scores.items, b.scores.items, strict=True)
            if metric.name in x.metrics and metric.name in y.metrics
        ]
        if both:
            left, right = zip(*both, strict=True)
            result = paired_test(left, right, proportion=metric.kind == "proportion")
            tests.append((a.label, b.label, result, _detectable(metric, result, left, right)))
    adjusted = holm([result.p for _, _, result, _ in tests])
    return [
        Pair(metric=metric.name, a=a, b=b, result=result, p_holm=p, comparisons=len(tests), detectable=seen)
        for (a, b, result, seen), p in zip(tests, adjusted, strict=True)
    ]


def _with_assisted(task: Task, rows: Sequence[Model]) -> tuple[Task, tuple[Model, ...]]:
    """The task with the assisted metrics that any row has; rows without them have no value there."""
    full = task.with_assisted({name for row in rows for name in row.scores.metrics})
    nothing = Estimate(None, None, None, 0)
    metrics = [{name: row.scores.metrics.get(name, nothing) for name in full.metric_names} for row in rows]
    filled = (replace(row, scores=replace(row.scores, metrics=m)) for row, m in zip(rows, metrics, strict=True))
    return full, tuple(filled)


def _detectable(metric: Metric, result: PairedTest, a: Sequence[float], b: Sequence[float]) -> Detectable:
    """What this test would have found, the models disagreeing as often as they did."""
    if metric.kind == "proportion":
        return detectable_proportion(result.n, (result.only_a + result.only_b) / result.n)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return detectable_mean(result.n, stdev(differences) if len(differences) > 1 else 0.0)


def _clean(model: Model, metric: Metric, leaks: Mapping[str, str]) -> Clean:
    """The metric without the flagged records."""
    kept = [
        item.metrics[metric.name] for item in model.scores.items if item.id not in leaks and metric.name in item.metrics
    ]
    return Clean(model.label, model.scores.metrics[metric.name], estimate(kept, metric.kind))


def _check_labels(entries: Sequence[Entry]) -> None:
    if not entries:
        raise UserError(got="nothing to compare", wanted="at least one predictions file", fix="pass a run folder")
    labels = [entry.label for entry in entries]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(got=f"label {twice[0]!r} twice", wanted="one label per row", fix="rename one of the files")


def _model(
    entry: Entry,
    task: Task,
    records: Sequence[Record],
    *,
    limit: int | None,
    processes: int | None,
    spec: TaskSpec | None,
    readers: Readers,
    price: float | None,
) -> Model:
    if entry.predictions.is_dir():
        scores, answers, predicted = _stored_scores(entry.predictions, task, records, limit), {}, 0
    else:
        predictions = read_predictions(entry.predictions)
        predicted = len(predictions.by_id)  # recorded times and costs are of them all, not of the scored ones only
        scores = score(task, records, predictions, limit=limit, processes=processes, spec=spec)
        scores = read_all(readers(entry.label), task, records[:limit], predictions, scores)
        answers = {item.id: predictions.by_id[item.id] for item in scores.items if item.id in predictions.by_id}
    for warning in scores.warnings:
        log.warning("%s: %s", entry.label, warning)
    return Model(
        label=entry.label,
        role=role_of(entry),
        note=entry.note,
        details={name: value for name, value in entry.details.items() if name != "role"},
        scores=scores,
        completions={identity: answer.completion for identity, answer in answers.items()},
        tokens=_tokens(list(answers.values())),
        usage=economy.usage(entry.details, list(answers.values()), price, predicted=predicted),
    )


def role_of(entry: Entry) -> Role:
    """Which row is the tuned one and which the base: `details["role"]`, else words of the label, else the prompt.

    Only a tuned model is given the structured prompt, so a row made with it is taken for tuned when nothing says
    otherwise.
    """
    role = entry.details.get("role")
    if role in get_args(Role):
        return cast(Role, role)
    words = set(re.split(r"[^a-z0-9]+", entry.label.lower()))
    if words & _TUNED_WORDS:
        return "tuned"
    if words & _BASE_WORDS:
        return "base"
    return "tuned" if entry.details.get("prompt") == "structured" else "other"


def _tokens(answers: Sequence[Prediction]) -> Tokens | None:
    counted = [answer.completion_tokens for answer in answers if answer.completion_tokens is not None]
    prompts = [answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None]
    if not counted:
        return None
    return Tokens(answers=len(counted), completion=sum(counted), prompt=sum(prompts) if prompts else None)


def _stored_scores(folder: Path, task: Task, records: Sequence[Record], limit: int | None) -> Scores:
    """Scores that `score --out` wrote, put in the order of the references; records without one count as empty."""
    by_id = {item.id: item for item in read_items(folder / "scores.jsonl")}
    names = {name for item in by_id.values() for name in item.metrics}
    task = task.with_assisted(names)
    strange = sorted(names.difference(task.metric_names))
    if strange:
        raise UserError(
            got=f"{folder}: scores with the metric {strange[0]!r}",
            wanted=f"metrics of task {task.name} version {task.version}: {', '.join(task.metric_names)}",
            fix="score the predictions again with this task",
        )
    wanted = records[:limit]
    absent = [record.id for record in wanted if record.id not in by_id]
    if len(absent) == len(wanted):
        raise UserError(
            got=f"{folder}: scores of {next(iter(by_id), 'nothing')!r} ...",
            wanted=f"scores of {wanted[0].id!r} ..." if wanted else "at least one reference",
            fix="pass the --references and --split that these scores were made for",
        )
    warnings = (f"{len(absent)} of {len(wanted)} records have no score; they count as empty answers",) if absent else ()
    items = tuple(by_id.get(record.id) or score_pair(task, record, Completion("")) for record in wanted)
    beside = folder / "metrics.json"
    assisted = jsonl.read_object(beside).get("assisted", {}) if beside.is_file() else {}
    return replace(_recount(task, items, missing=len(absent), warnings=warnings), assisted=assisted)


def _recount(task: Task, items: tuple[ItemScore, ...], *, missing: int, warnings: tuple[str, ...]) -> Scores:
    errors = count_errors(task, items)
    blank = Scores(task=task.name, task_version=task.version, n=len(items), metrics=summarise(task, items), errors={})
    return replace(
        blank, errors=errors, missing=missing, truncated=errors.get("truncated", 0), warnings=warnings, items=items
    )
