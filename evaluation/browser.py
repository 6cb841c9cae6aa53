"""The records, every answer to them and every verdict, packed for the page's item browser.

Called by report; report.js reads it. Thousands of records with several answers each stand in one page, so what repeats
is written once: an answer equal to gold is 0, reasons and categories are numbers into a list, verdicts are bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evaluation.comparison import Comparison, Model
from evaluation.pool import ItemScore
from tasks.base import Metric

SAME_AS_GOLD = 0
NO_ERROR = "no error found"


def payload(comparison: Comparison, *, clean: Callable[[str], str]) -> dict[str, Any]:
    """What the browser shows, JSON-able.

    Args:
        comparison: with texts of every record.
        clean: applied to every text that a model or a data set brought in.

    Returns:
        models, metrics, errors: names; models[0] is the subject.
        whys: distinct reasons.
        order: places, the subject's worst first.
        ids, inputs, golds: one per record; leaks: place -> reason.
        answers: per model, columns of one value per record: texts (0: as gold, null: not kept), errors (-1: none) and
            whys (both numbers into the lists above), right (bit m: right by metrics[m]).
    """
    metrics = judging(comparison)
    whys: dict[str, int] = {}
    errors: dict[str, int] = {}
    subject = comparison.subject
    models = [subject, *(model for model in comparison.models if model is not subject)]
    items = subject.scores.items
    return {
        "models": [clean(model.label) for model in models],
        "answers": [_answers(model, comparison.golds, metrics, whys, errors, clean) for model in models],
        "metrics": [metric.name for metric in metrics] + [NO_ERROR],
        "errors": [clean(name) for name in errors],
        "whys": [clean(why) for why in whys],
        "order": list(comparison.order),
        "ids": [clean(item.id) for item in items],
        "inputs": [clean(text) for text in comparison.inputs],
        "golds": [clean(text) for text in comparison.golds],
        "leaks": {
            str(place): clean(comparison.leaks[item.id])
            for place, item in enumerate(items)
            if item.id in comparison.leaks
        },
    }


def judging(comparison: Comparison) -> list[Metric]:
    """The metrics that call an answer right or wrong, the headline one first."""
    fit = [m for m in comparison.task.metrics if m.kind == "proportion" and m.higher_is_better is not None]
    return sorted(fit, key=lambda metric: (metric.name != comparison.metric.name, not metric.headline))


def _answers(
    model: Model,
    golds: tuple[str, ...],
    metrics: list[Metric],
    whys: dict[str, int],
    errors: dict[str, int],
    clean: Callable[[str], str],
) -> dict[str, list[Any]]:
    items = model.scores.items
    kept = bool(model.completions)
    texts: list[Any] = []
    for item, gold in zip(items, golds, strict=True):
        text = model.completions.get(item.id, "") if kept else None
        texts.append(None if text is None else SAME_AS_GOLD if text == gold else clean(text))
    return {
        "texts": texts,
        "errors": [-1 if item.error is None else errors.setdefault(item.error, len(errors)) for item in items],
        "whys": [whys.setdefault(item.why, len(whys)) for item in items],
        "right": [_right(item, metrics) for item in items],
    }


def _right(item: ItemScore, metrics: list[Metric]) -> int:
    """Bit m: right by metrics[m]; the bit after them: no error found."""
    bits = 0
    for place, metric in enumerate(metrics):
        value = item.metrics.get(metric.name)
        if value is not None and (value >= 1.0 if metric.higher_is_better else value <= 0.0):
            bits |= 1 << place
    return bits | (item.error is None) << len(metrics)
