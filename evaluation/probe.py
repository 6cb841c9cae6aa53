"""Is fine-tuning promising? The two questions of the study's authors, answered from a base model's own behaviour.

1. Has the base met the concept? It answers more than a few records right, or tells the right answer from another
   record's where copying words of the prompt would not do.
2. Do worked examples help? If showing a few does, training on many likely helps more.

    few-shot curve (scores at k = 0, 1, 2, 4, 8) + recognition -> Verdict      called by `fulltune probe`

Question 1 is looked at once per number of examples and once more by recognition, and one look is enough for a yes. So
each look has an interval as wide as that asks for (Bonferroni: 95 % for all looks together), and its lower end has to
pass a stated threshold: one lucky answer in the best of five settings shows nothing.

Fine-tuning is for form, not facts (Kadous and Hakhamaneshi, 2023): a base that knows the matter and lacks the form is
the case where tuning pays.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluation.compare import headline_metric
from evaluation.intervals import CONFIDENCE, Estimate, estimate, wilson
from evaluation.paired import PairedTest, differs, holm, paired_test
from evaluation.score import Scores
from tasks.base import Metric, Task

CHANCE = 0.5  # of telling two answers apart
SHOWN = 0.05  # share of right answers that guessing a frequent answer may reach; more than this shows something
CEILING = 0.9  # a base that is this good with examples leaves little for tuning


@dataclass(frozen=True, slots=True)
class Point:
    """The headline metric with `shots` worked examples in the prompt."""

    shots: int
    score: Estimate
    format_violation: Estimate


@dataclass(frozen=True, slots=True)
class Choice:
    """One record: its own answer against another record's.

    Attributes:
        right: the model finds its own answer likelier.
        copying: the own answer has the larger share of words out of the question, so that copying prefers it too.
    """

    right: bool
    copying: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The curve, the evidence, and plain answers.

    Attributes:
        recognition: share of records whose own answer is more likely to the model than another record's; None where
            the model gives no likelihoods (an API).
        beyond_copying: the same over the records where copying words of the question does not prefer the own answer;
            only these count as evidence.
        looks: at the question whether the concept was met; `confidence` is that of each look's interval.
        best: number of shots with the highest score; `help` tests it against no shots (Holm over the curve).
        met_concept, shots_help: the answers to the two questions.
        evidence: what the answer to the first rests on, in sentences.
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
    beyond_copying: Estimate | None = None
    looks: int = 1
    confidence: float = CONFIDENCE
    evidence: tuple[str, ...] = ()

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
        names = ("metric", "best", "help_p_holm", "met_concept", "shots_help", "looks", "confidence")
        return {name: getattr(self, name) for name in names} | {
            "curve": curve,
            "recognition": self.recognition.as_json() if self.recognition else None,
            "recognition_beyond_copying": self.beyond_copying.as_json() if self.beyond_copying else None,
            "help": asdict(self.help) if self.help else None,
            "evidence": list(self.evidence),
            "advice": list(self.advice),
        }


def judge(task: Task, by_shots: Sequence[tuple[int, Scores]], choices: Sequence[Choice] | None) -> Verdict:
    """Answers both questions.

    Args:
        by_shots: scores of the same records at rising numbers of shots.
        choices: per record, its own answer against another's; None where there are no likelihoods.
    """
    metric = headline_metric(task)
    curve = tuple(
        Point(shots, scores.metrics[metric.name], scores.metrics["format_violation"]) for shots, scores in by_shots
    )
    best = max(curve, key=lambda point: (point.score.mean or 0.0, -point.shots)).shots
    tests = _against_no_shots(metric, by_shots)
    adjusted = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    helped = best in tests and tests[best].difference > 0 and differs(adjusted[best])
    looks = len(curve) + (choices is not None)
    confidence = 1 - (1 - CONFIDENCE) / looks
    answers, first = _answers(metric, by_shots, best, confidence)
    recognises, second = _recognises(choices, confidence)
    beyond = [choice for choice in choices or () if not choice.copying]
    top = next(point.score for point in curve if point.shots == best)
    return Verdict(
        metric=metric.name,
        curve=curve,
        recognition=_share(choices) if choices is not None else None,
        beyond_copying=_share(beyond) if choices is not None else None,
        best=best,
        help=tests.get(best),
        help_p_holm=adjusted.get(best),
        met_concept=answers or recognises,
        shots_help=helped,
        looks=looks,
        confidence=confidence,
        evidence=(first, *second),
        advice=_advice(met=answers or recognises, helped=helped, top=top.mean or 0.0),
    )


def _share(choices: Sequence[Choice]) -> Estimate:
    return estimate([float(choice.right) for choice in choices], "proportion")


def _against_no_shots(metric: Metric, by_shots: Sequence[tuple[int, Scores]]) -> dict[int, PairedTest]:
    """Paired tests against k = 0, on the records that have the metric under both prompts."""
    columns = {
        shots: {item.id: item.metrics[metric.name] for item in scores.items if metric.name in item.metrics}
        for shots, scores in by_shots
    }
    tests = {}
    for shots, values in columns.items():
        both = [name for name in values if name in columns.get(0, {})]
        if shots and both:
            pair = [[column[name] for name in both] for column in (values, columns[0])]
            tests[shots] = paired_test(*pair, proportion=metric.kind == "proportion")
    return tests


def _answers(metric: Metric, by_shots: Sequence[tuple[int, Scores]], best: int, confidence: float) -> tuple[bool, str]:
    """Whether the base answers more than a few records right at its best setting, and that in a sentence."""
    if metric.kind == "mean" or not metric.higher_is_better:
        return False, f"{metric.name} is no share of right answers: it cannot show whether the base met the concept."
    scores = dict(by_shots)[best]
    values = [item.metrics[metric.name] for item in scores.items if metric.name in item.metrics]
    if not values:
        return False, f"No answer has the metric {metric.name}: nothing can be said from it."
    low = _lower_end(values, confidence)
    start = f"At its best, with {best} examples, it scores {statistics.fmean(values):.1%} on {len(values)} records"
    sure = f"at least {low:.1%}, corrected for every look at the question (each at {confidence:.1%})"
    return low > SHOWN, f"{start}: {sure}; more than {SHOWN:.0%} is wanted."


def _lower_end(values: Sequence[float], confidence: float) -> float:
    """Of the interval of the mean. Shares count like whole answers, which makes the interval wider than it need be."""
    return wilson(int(sum(values)), len(values), confidence)[0]


def _recognises(choices: Sequence[Choice] | None, confidence: float) -> tuple[bool, list[str]]:
    """Whether the base tells its own answers from others where copying does not help, and that in sentences."""
    if choices is None:
        return False, []
    rest = [choice.right for choice in choices if not choice.copying]
    told = [
        f"It finds a record's own answer likelier than another record's for {sum(c.right for c in choices)} of "
        f"{len(choices)}. For {len(choices) - len(rest)} of them copying words of the question is enough for that, so "
        "they do not count."
    ]
    if not rest:
        return False, [*told, "No record is left, so recognition shows nothing here."]
    low = wilson(sum(rest), len(rest), confidence)[0]
    told.append(
        f"Of the other {len(rest)} it is right for {sum(rest)}: at least {low:.1%}, and more than {CHANCE:.0%} is "
        "wanted. This can show that question and answer belong together for the base; it cannot show that the base "
        "would find the answer by itself."
    )
    return low > CHANCE, told


def _advice(*, met: bool, helped: bool, top: float) -> tuple[str, ...]:
    first = (
        "The base has met the concept."
        if met
        else "Nothing shows that the base has met the concept (too few records can be the reason). If it has not, "
        "tuning would have to teach facts, for which it is the wrong tool: try a larger base, or put the knowledge "
        "into the prompt."
    )
    second = (
        "Worked examples help, so training on many likely helps more."
        if helped
        else "Worked examples do not clearly help on these records; take more records, or expect tuning to teach the "
        "form only."
    )
    third = (f"With examples it already reaches {top:.0%}: tuning may save tokens rather than add accuracy.",)
    return (first, second, *(third if top >= CEILING else ()))
