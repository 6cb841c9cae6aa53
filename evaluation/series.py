"""Rows that differ in one thing only: few-shot curves, learning curves, spread over seeds, prompt against prompt.

Called by compare. Which rows belong together follows from `Entry.details`: `shots`, `prompt`, `seed`, `training_rows`
and what the model is (`setting`, a digest of a run's recipe without seed and data size; else `model`, with the
`base_url` of a server: what it serves under the same name need not be the same).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from evaluation.comparison import Model
from evaluation.economy import number
from tasks.base import Metric


@dataclass(frozen=True, slots=True)
class Point:
    """A place on a curve: the mean over its rows; the interval of the one row, or the range of several."""

    x: float
    labels: tuple[str, ...]
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric over shots or training rows, at two places at least. `name` says whose curve it is."""

    name: str
    metric: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric over runs that differ in their seed only; `deviation` is the sample standard deviation."""

    name: str
    metric: str
    seeds: tuple[int, ...]
    labels: tuple[str, ...]
    values: tuple[float, ...]
    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class PromptPair:
    """Two rows of the same model that were asked in different words."""

    a: str
    b: str
    prompt_a: str
    prompt_b: str


@dataclass(frozen=True, slots=True)
class Series:
    """Everything that rows differing in one thing show."""

    few_shot: tuple[Curve, ...] = ()
    learning: tuple[Curve, ...] = ()
    seeds: tuple[Spread, ...] = ()
    prompts: tuple[PromptPair, ...] = ()


def series(models: Sequence[Model], metrics: Sequence[Metric]) -> Series:
    """Find the groups among the rows and follow `metrics` along them."""
    tuned = [model for model in models if model.role == "tuned"]
    shots = _groups(models, lambda m: (_identity(m), _detail(m, "prompt"), _seed(m), _rows(m)), _shots)
    rows = _groups(tuned, lambda m: (_identity(m), _detail(m, "prompt"), _shots(m)), _rows)
    seeds = _groups(tuned, lambda m: (_identity(m), _detail(m, "prompt"), _shots(m), _rows(m)), _seed)
    return Series(
        few_shot=tuple(curve for group in shots for curve in _curves(group, metrics, _shots)),
        learning=tuple(curve for group in rows for curve in _curves(group, metrics, _rows)),
        seeds=tuple(spread for group in seeds for metric in metrics for spread in _spread(group, metric)),
        prompts=tuple(_prompt_pairs(models)),
    )


def _identity(model: Model) -> Hashable:
    """What was asked: rows of the same recipe or of the same model are alike, whatever their label."""
    for name in ("setting", "model"):
        if model.details.get(name):
            return name, str(model.details[name]), model.details.get("base_url")
    return ("base",) if model.role == "base" else ("label", model.label)


def _detail(model: Model, name: str) -> str | None:
    value = model.details.get(name)
    return None if value is None else str(value)


def _shots(model: Model) -> float | None:
    return number(model.details.get("shots"))


def _rows(model: Model) -> float | None:
    return number(model.details.get("training_rows"))


def _seed(model: Model) -> float | None:
    return number(model.details.get("seed"))


def _groups(
    models: Iterable[Model], key: Callable[[Model], Hashable], place: Callable[[Model], float | None]
) -> list[list[Model]]:
    """Rows that share `key` and stand at two places at least."""
    found: dict[Hashable, list[Model]] = {}
    for model in models:
        if place(model) is not None:
            found.setdefault(key(model), []).append(model)
    return [group for group in found.values() if len({place(model) for model in group}) > 1]


def _curves(
    group: Sequence[Model], metrics: Sequence[Metric], place: Callable[[Model], float | None]
) -> Iterable[Curve]:
    at: dict[float, list[Model]] = {}
    for model in group:
        x = place(model)
        assert x is not None, "_groups takes rows with a place only"
        at.setdefault(x, []).append(model)
    for metric in metrics:
        points = [point for x in sorted(at) if (point := _point(x, at[x], metric)) is not None]
        if len(points) > 1:
            yield Curve(_name(group), metric.name, tuple(points))


def _point(x: float, models: Sequence[Model], metric: Metric) -> Point | None:
    estimates = [model.scores.metrics[metric.name] for model in models]
    means = [estimate.mean for estimate in estimates if estimate.mean is not None]
    if not means:
        return None
    first = estimates[0]
    alone = len(means) == 1 and first.low is not None and first.high is not None
    low, high = (first.low, first.high) if alone else (min(means), max(means))
    assert low is not None
    assert high is not None
    return Point(x, tuple(model.label for model in models), fmean(means), low, high)


def _spread(group: Sequence[Model], metric: Metric) -> Iterable[Spread]:
    measured: Mapping[str, float] = {
        model.label: mean for model in group if (mean := model.scores.metrics[metric.name].mean) is not None
    }
    if len(measured) < 2:
        return
    values = tuple(measured.values())
    yield Spread(
        name=_name(group),
        metric=metric.name,
        seeds=tuple(int(_seed(model) or 0) for model in group if model.label in measured),
        labels=tuple(measured),
        values=values,
        mean=fmean(values),
        deviation=stdev(values),
    )


def _prompt_pairs(models: Sequence[Model]) -> Iterable[PromptPair]:
    found: dict[Hashable, list[Model]] = {}
    for model in models:
        if _detail(model, "prompt") is not None:
            found.setdefault((_identity(model), _shots(model) or 0.0, _seed(model), _rows(model)), []).append(model)
    for group in found.values():
        first = group[0]
        for other in group[1:]:
            if _detail(other, "prompt") != _detail(first, "prompt"):
                yield PromptPair(first.label, other.label, str(_detail(first, "prompt")), str(_detail(other, "prompt")))


def _name(group: Sequence[Model]) -> str:
    """What the labels of a group have in common at their start, else the first label."""
    labels = [model.label for model in group]
    shared = labels[0]
    for label in labels[1:]:
        while not label.startswith(shared):
            shared = shared[:-1]
    return shared.rstrip(" -_/,(0123456789") or labels[0]
