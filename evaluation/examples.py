"""The examples that went worst, and where an answer parts from the gold one.

Used by compare (which examples) and report (marks inside the text). A mean says how often a model fails; these say
how.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from evaluation.comparison import Example, Model, Output
from evaluation.pool import ItemScore
from tasks.base import Metric, Record, Task

WORST = 20
SIMILAR = 0.4  # of two texts below this share of common letters a diff marks nearly everything and helps nobody
DIFF_CHARS = 4_000  # a diff is quadratic in the worst case

_PIECES = re.compile(r"\w+|\s+|[^\w\s]")


class Mark(NamedTuple):
    """A stretch of a diff: in both texts, only in the gold one ("missing"), or only in the output ("extra")."""

    kind: Literal["same", "missing", "extra"]
    text: str


class Texts(NamedTuple):
    """What every record asks and what its perfect answer is."""

    inputs: tuple[str, ...]
    golds: tuple[str, ...]


def texts(task: Task, records: Sequence[Record]) -> Texts:
    """Inputs (the structured prompt without its special tokens) and gold answers of `records`."""
    return Texts(
        inputs=tuple(_without_special_tokens(task, task.structured_prompt(record)) for record in records),
        golds=tuple(task.reference(record) for record in records),
    )


class Ranking(NamedTuple):
    """Places of all records, worst first; only the first `faulty` of them have any fault."""

    places: tuple[int, ...]
    faulty: int


def worst_first(task: Task, subject: Model, others: Sequence[Model]) -> Ranking:
    """The records by how wrong `subject` got them.

    Ordered by the headline metrics, then by the mean of all metrics with a direction; of equally bad ones those come
    first that another model got right, then the order of the references decides.
    """
    judged = [metric for metric in task.metrics if metric.higher_is_better is not None]
    headline = [metric for metric in judged if metric.headline] or judged[:1]
    scale = _Scale.of(judged, subject.scores.items)
    ranked = []
    for place, item in enumerate(subject.scores.items):
        grade = scale.grade(headline, item)
        beaten = any(other.scores.items[place].error is None for other in others)
        perfect = item.error is None and grade >= 1.0
        ranked.append((perfect, grade, scale.grade(judged, item), not beaten, place))
    ranked.sort()
    return Ranking(tuple(place for *_, place in ranked), faulty=sum(not perfect for perfect, *_ in ranked))


def worst(found: Texts, ranking: Ranking, models: Sequence[Model], count: int = WORST) -> tuple[Example, ...]:
    """The worst `count` records, perfect answers never among them; every model's answer, the subject's first."""
    places = ranking.places[: min(count, ranking.faulty)]
    return tuple(_example(found, place, models) for place in places)


class _Scale(NamedTuple):
    """The range of every metric over one model's items, to put free numbers beside proportions."""

    ranges: dict[str, tuple[float, float]]

    @staticmethod
    def of(metrics: Sequence[Metric], items: Sequence[ItemScore]) -> _Scale:
        free = [metric.name for metric in metrics if metric.kind == "mean"]
        seen = {name: [item.metrics[name] for item in items if name in item.metrics] for name in free}
        return _Scale({name: (min(values), max(values)) for name, values in seen.items() if values})

    def grade(self, metrics: Sequence[Metric], item: ItemScore) -> float:
        """Mean goodness of an item, 0 worst to 1 best; 1 when none of the metrics applies to it."""
        grades = []
        for metric in metrics:
            if metric.name in item.metrics:
                low, high = self.ranges.get(metric.name, (0.0, 1.0))
                value = (item.metrics[metric.name] - low) / (high - low) if high > low else 1.0
                grades.append(value if metric.higher_is_better else 1.0 - value)
        return sum(grades) / len(grades) if grades else 1.0


def _example(found: Texts, place: int, models: Sequence[Model]) -> Example:
    return Example(
        id=models[0].scores.items[place].id,
        input=found.inputs[place],
        gold=found.golds[place],
        outputs=tuple(_output(model, place) for model in models),
    )


def _without_special_tokens(task: Task, text: str) -> str:
    for token in task.special_tokens:
        text = text.replace(token, " ")
    return text.strip()


def _output(model: Model, place: int) -> Output:
    item = model.scores.items[place]
    text = model.completions.get(item.id, "") if model.completions else None
    return Output(label=model.label, text=text, error=item.error, why=item.why)


def marks(gold: str, output: str) -> list[Mark]:
    """The output with what it lacks of the gold text and what it adds, word by word.

    Texts that share too little, or are too long to compare, come back unmarked, as one "same" stretch of the output.
    """
    left, right = _PIECES.findall(gold), _PIECES.findall(output)
    matcher = difflib.SequenceMatcher(a=left, b=right, autojunk=False)
    if len(gold) + len(output) > DIFF_CHARS or _likeness(matcher, left, right) < SIMILAR:
        return [Mark("same", output)] if output else []
    found: list[Mark] = []
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
        if tag == "equal":
            found.append(Mark("same", "".join(right[b0:b1])))
            continue
        found.append(Mark("missing", "".join(left[a0:a1])))
        found.append(Mark("extra", "".join(right[b0:b1])))
    return [mark for mark in found if mark.text]


def _likeness(matcher: difflib.SequenceMatcher[str], left: Sequence[str], right: Sequence[str]) -> float:
    """Share of the letters of both texts that match; white space matches everything and does not count."""
    shared = [piece for block in matcher.get_matching_blocks() for piece in left[block.a : block.a + block.size]]
    return 2 * _letters(shared) / max(1, _letters(left) + _letters(right))


def _letters(pieces: Sequence[str]) -> int:
    return sum(len(piece) for piece in pieces if not piece.isspace())
