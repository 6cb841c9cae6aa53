"""Is fine-tuning promising? The two questions of the study's authors, answered from a base model's own behaviour.

1. Has the base met the concept? It tells the right answer from another record's (likelihood), or scores above nothing.
2. Do worked examples help? If showing a few does, training on many likely helps more.

    few-shot curve (scores at k = 0, 1, 2, 4, 8) + recognition -> Verdict      called by `fulltune probe`

Fine-tuning is for form, not facts (Kadous and Hakhamaneshi, 2023): a base that knows the matter and lacks the form is
the case where tuning pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluation.compare import headline_metric
from evaluation.intervals import Estimate, estimate
from evaluation.paired import PairedTest, differs, holm, paired_test
from evaluation.score import Scores
from tasks.base import Task

CHANCE = 0.5  # of telling two answers apart
CEILING = 0.9  # a base that is this good with examples leaves little for tuning


@dataclass(frozen=True, slots=True)
class Point:
    """The headline metric with `shots` worked examples in the prompt."""

    shots: int
    score: Estimate
    format_violation: Estimate


@dataclass(frozen=True, slots=True)
class Verdict:
    """The curve, the evidence, and plain answers.

    Attributes:
        recognition: share of records whose own answer is more likely to the model than another record's; None where
            the model gives no likelihoods (an API).
        best: number of shots with the highest score; `help` tests it against no shots (Holm over the curve).
        met_concept, shots_help: the answers to the two questions.
        advice: what to do, in sentences.
    """

    metric: str
    curve: tuple[Point, ...]
    recognition: Estimate | None
    best: int
    help: PairedTest | None
    help_p_holm: float | None
    met_concept: bool
    shots_help: bool
    advice: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """A JSON object; estimates as {"mean", "ci95", "n"}."""
        curve = [
            {
                "shots": point.shots,
                self.metric: point.score.as_json(),
                "format_violation": point.format_violation.as_json(),
            }
            for point in self.curve
        ]
        seen = self.recognition.as_json() if self.recognition else None
        rest = {name: getattr(self, name) for name in ("metric", "best", "help_p_holm", "met_concept", "shots_help")}
        return {**rest, "curve": curve, "recognition": seen, "help": asdict(self.help) if self.help else None} | {
            "advice": list(self.advice)
        }


def judge(task: Task, by_shots: Sequence[tuple[int, Scores]], recognised: Sequence[bool] | None) -> Verdict:
    """Answers both questions.

    Args:
        by_shots: scores of the same records at rising numbers of shots.
        recognised: per record, whether its own answer was the likelier of two.
    """
    metric = headline_metric(task)
    curve = tuple(
        Point(shots, scores.metrics[metric.name], scores.metrics["format_violation"]) for shots, scores in by_shots
    )
    recognition = estimate([float(value) for value in recognised], "proportion") if recognised is not None else None
    columns = {shots: [item.metrics[metric.name] for item in scores.items] for shots, scores in by_shots}
    best = max(curve, key=lambda point: (point.score.mean or 0.0, -point.shots)).shots
    tests = {
        shots: paired_test(values, columns[0], proportion=metric.kind == "proportion")
        for shots, values in columns.items()
        if shots and 0 in columns
    }
    adjusted = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    helped = best in tests and tests[best].difference > 0 and differs(adjusted[best])
    knows = recognition is not None and recognition.low is not None and recognition.low > CHANCE
    top = next(point.score for point in curve if point.shots == best)
    met = knows or (top.low is not None and top.low > 0.0 and bool(top.mean))
    return Verdict(
        metric=metric.name,
        curve=curve,
        recognition=recognition,
        best=best,
        help=tests.get(best),
        help_p_holm=adjusted.get(best),
        met_concept=met,
        shots_help=helped,
        advice=_advice(met=met, helped=helped, top=top.mean or 0.0),
    )


def _advice(*, met: bool, helped: bool, top: float) -> tuple[str, ...]:
    first = (
        "The base has met the concept."
        if met
        else "Nothing shows that the base has met the concept: tuning would have to teach facts, for which it is the "
        "wrong tool; try a larger base, or put the knowledge into the prompt."
    )
    second = (
        "Worked examples help, so training on many likely helps more."
        if helped
        else "Worked examples do not clearly help on these records; take more records, or expect tuning to teach the "
        "form only."
    )
    third = (f"With examples it already reaches {top:.0%}: tuning may save tokens rather than add accuracy.",)
    return (first, second, *(third if top >= CEILING else ()))
