"""The types of a comparison: models as rows, metrics as columns, and what is known about the gaps between them.

`compare` builds a `Comparison`, `report` shows it, `as_json` is results.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from evaluation.economy import Economy, Usage
from evaluation.intervals import Estimate
from evaluation.paired import PairedTest
from evaluation.power import Detectable
from evaluation.score import Scores
from tasks.base import Metric, Task

if TYPE_CHECKING:
    from evaluation.series import Series  # finds groups among `Model`s

SCHEMA = 1

Role = Literal["tuned", "base", "other"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the report to be.

    Attributes:
        label: the row's name, unique in a comparison.
        predictions: a predictions.jsonl, or a folder that `score --out` wrote.
        note: the setting in a few words ("8 shots, natural prompt").
        details: how the answers were made, printed as they are. Read from it: `role` ("tuned", "base", "other"; else
            the label decides), `shots`, `prompt`, `model`, `setting`, `seed` and `training_rows` (which rows belong
            together), `seconds` and `workers` of the prediction, `answers_cost_usd`, `worker_hours` of the tuning.
            Single predictions may hold `latency_s` and `cost_usd`.
    """

    label: str
    predictions: Path
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Generated tokens of one model, over the `answers` whose count was recorded."""

    answers: int
    completion: int
    prompt: int | None

    @property
    def per_answer(self) -> float:
        return self.completion / self.answers


@dataclass(frozen=True, slots=True)
class Model:
    """One row: an entry, its scores and its answers by record id (empty where only scores were kept)."""

    label: str
    role: Role
    note: str
    details: Mapping[str, Any]
    scores: Scores
    completions: Mapping[str, str]
    tokens: Tokens | None
    usage: Usage

    def as_json(self) -> dict[str, Any]:
        tokens = asdict(self.tokens) | {"per_answer": self.tokens.per_answer} if self.tokens else None
        head = {"label": self.label, "role": self.role, "note": self.note, "details": dict(self.details)}
        spent = {"tokens": tokens, "usage": asdict(self.usage)}
        return {**head, **self.scores.as_json(), **spent, "warnings": list(self.scores.warnings)}


@dataclass(frozen=True, slots=True)
class Pair:
    """A paired test of models `a` and `b` on one metric; Holm over the `comparisons` pairs of that metric.

    `detectable` is the smallest difference that such a test would have found.
    """

    metric: str
    a: str
    b: str
    result: PairedTest
    p_holm: float
    comparisons: int
    detectable: Detectable

    def change(self, label: str) -> float:
        """Mean of that model minus mean of the other, over the items that both have: what the test is about."""
        return self.result.difference if label == self.a else -self.result.difference

    def as_json(self) -> dict[str, Any]:
        row = asdict(self.result)
        interval = {"ci95": [row.pop("low"), row.pop("high")]}
        names = {"metric": self.metric, "a": self.a, "b": self.b}
        power = {"detectable": asdict(self.detectable)}
        return {**names, **row, **interval, "p_holm": self.p_holm, "comparisons": self.comparisons, **power}


@dataclass(frozen=True, slots=True)
class Output:
    """What one model answered to one example; `text` is None where only its score was kept."""

    label: str
    text: str | None
    error: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Example:
    """A record with the gold answer and every model's answer, the subject's first."""

    id: str
    input: str
    gold: str
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Clean:
    """The headline metric of one model with and without the records that are flagged as leaked."""

    label: str
    every: Estimate
    clean: Estimate


@dataclass(frozen=True, slots=True)
class LeakCheck:
    """What the records were compared with to find leaks, and what could not be looked through; by name."""

    against: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several models on the same records of one task.

    Attributes:
        title: of the report.
        task: what they were asked to do.
        n: number of records scored.
        limit: set when only the first so many records were scored.
        source, split: where the records came from, if known.
        models: in the order given.
        subject: the model the report is about: the last tuned one, else the last.
        base: the model it started from, at its best setting on the headline metric if there are several (see `best` for
            ties); None when there is one model only.
        metric: the headline metric.
        pairs: paired tests, every metric with a direction and every two models.
        worst: examples that the subject got most wrong.
        inputs, golds: texts of every record, in the order of the scores.
        order: places of the records, the subject's worst first.
        series: rows that differ in one thing only.
        economy: what tuning cost and when it pays.
        leaks: record id -> why it may have been seen in training; `clean` has the figures without those records.
        checked: what was looked through for them; empty where nobody looked.
        loss_curve: logged training steps.
        provenance: what made the run: versions, git sha, hardware, command, configuration.
    """

    title: str
    task: Task
    n: int
    limit: int | None
    source: str | None
    split: str | None
    models: tuple[Model, ...]
    subject: Model
    base: Model | None
    metric: Metric
    pairs: tuple[Pair, ...]
    worst: tuple[Example, ...]
    inputs: tuple[str, ...]
    golds: tuple[str, ...]
    order: tuple[int, ...]
    series: Series
    economy: Economy
    leaks: Mapping[str, str]
    checked: LeakCheck
    clean: tuple[Clean, ...]
    loss_curve: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any]

    def pair(self, metric: str, a: str, b: str) -> Pair | None:
        """The test of a against b on that metric, in that order or the other."""
        return next((p for p in self.pairs if p.metric == metric and {p.a, p.b} == {a, b}), None)

    def as_json(self, headline: str) -> dict[str, Any]:
        """results.json: every figure of the report and the per-item scores behind them."""
        return {
            "schema": SCHEMA,
            "title": self.title,
            "headline": headline,
            "task": self.task.name,
            "task_version": self.task.version,
            "source": self.source,
            "split": self.split,
            "limit": self.limit,
            "n": self.n,
            "headline_metric": self.metric.name,
            "subject": self.subject.label,
            "base": self.base.label if self.base else None,
            "metrics": [asdict(metric) for metric in self.task.metrics],
            "models": [model.as_json() for model in self.models],
            "published": [asdict(row) for row in self.task.published],
            "paired": [pair.as_json() for pair in self.pairs],
            "worst": [asdict(example) for example in self.worst],
            "series": asdict(self.series),
            "economy": asdict(self.economy),
            "leaks": {
                "records": dict(self.leaks),
                "against": list(self.checked.against),
                "left_out": list(self.checked.left_out),
                "clean": [_clean_json(row) for row in self.clean],
            },
            "loss_curve": [dict(line) for line in self.loss_curve],
            "provenance": dict(self.provenance),
            "items": self._items(),
        }

    def _items(self) -> list[dict[str, Any]]:
        return [
            {
                "id": rows[0].id,
                "models": {
                    model.label: {"metrics": dict(row.metrics), "error": row.error}
                    for model, row in zip(self.models, rows, strict=True)
                },
            }
            for rows in zip(*(model.scores.items for model in self.models), strict=True)
        ]


def _clean_json(row: Clean) -> dict[str, Any]:
    return {"label": row.label, "all": row.every.as_json(), "clean": row.clean.as_json()}


def best(models: Sequence[Model], metric: Metric, ties: Sequence[Metric] = ()) -> Model | None:
    """The model with the best mean; None when no model has one.

    A tie on `metric` is broken by the headline metrics among `ties`, one after the other, then by the mean of those of
    them that have a direction and are shares (free numbers have units of their own); at last the earlier model wins.
    """
    further = [other for other in ties if other.headline and other.name != metric.name]
    shares = [other for other in ties if other.higher_is_better is not None and other.kind != "mean"]

    def rank(model: Model) -> tuple[float, ...]:
        together = [value for other in shares if (value := _goodness(model, other)) > -math.inf]
        mean = fmean(together) if together else -math.inf
        return _goodness(model, metric), *(_goodness(model, other) for other in further), mean

    measured = [model for model in models if model.scores.metrics[metric.name].mean is not None]
    return max(measured, key=rank, default=None)


def _goodness(model: Model, metric: Metric) -> float:
    """The mean, with its sign turned where less is better; minus infinity where there is none."""
    mean = model.scores.metrics[metric.name].mean
    return -math.inf if mean is None else -mean if metric.higher_is_better is False else mean
