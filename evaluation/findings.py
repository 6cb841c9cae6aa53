"""What the figures amount to: where tuning helped and where not, what the test could see, what curves and money say.

Used by report, beside `wording` and under its rule: a sentence says what the figures say, also when they disappoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.comparison import Comparison, Model, Pair, best
from evaluation.economy import BreakEven
from evaluation.intervals import Estimate
from evaluation.paired import differs
from evaluation.power import POWER
from evaluation.series import Curve, Point, Spread
from evaluation.wording import counted, gap, number, on_common, p_value, paired_sentence, plural
from tasks.base import Metric


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the subject stands to another row on one metric, told from the subject's side.

    Attributes:
        mine, theirs: each over the records that the row has a value for.
        change: mine minus theirs over the records that both have: the difference that is tested.
        row: label of the other row where it is not the one that the finding names, else "".
    """

    metric: Metric
    mine: Estimate
    theirs: Estimate
    pair: Pair
    change: float
    row: str = ""

    @property
    def values(self) -> str:
        """ "91.5 % against 80.0 % of base-8shot", and the paired difference where that is over other records."""
        values = f"{number(self.mine.mean, self.metric)} against {number(self.theirs.mean, self.metric)}"
        values += f" of {self.row}" if self.row else ""
        common = on_common(self.pair, self.mine, self.theirs)
        return f"{values}; {gap(self.change, self.metric)}{common}" if common else values

    @property
    def text(self) -> str:
        """ "values: 91.5 % against 80.0 % (p = 0.003)"."""
        return f"{self.metric.name}: {self.values} ({p_value(self.pair.p_holm)})"


@dataclass(frozen=True, slots=True)
class Findings:
    """The subject against one row, metric by metric: clearly better, not clearly different, clearly worse."""

    other: str
    better: tuple[Verdict, ...]
    unclear: tuple[Verdict, ...]
    worse: tuple[Verdict, ...]


def rivals(comparison: Comparison, metric: Metric) -> list[Model]:
    """The rows that the subject is judged by on a metric: the base at its best on it, and every row that is neither
    base nor tuned.
    """
    return [_on(comparison, model, metric) for model in _named(comparison)]


def _named(comparison: Comparison) -> list[Model]:
    """The rows that findings are named after: the base of the headline stands for all settings of the base."""
    others = [model for model in comparison.models if model is not comparison.subject and model.role == "other"]
    base = comparison.base
    return [*([base] if base is not None else []), *(model for model in others if model is not base)]


def _on(comparison: Comparison, other: Model, metric: Metric) -> Model:
    """The row to set the subject against on this metric: that one; for the base its best setting, itself on a tie."""
    if other is not comparison.base or other.role != "base":
        return other
    settings = [model for model in comparison.models if model.role == "base" and model is not other]
    tested = [
        model for model in (other, *settings) if comparison.pair(metric.name, comparison.subject.label, model.label)
    ]
    return best(tested, metric) or other


def findings(comparison: Comparison) -> list[Findings]:
    """The subject against each of its rivals."""
    return [_against(comparison, model) for model in _named(comparison)]


def settings_sentence(comparison: Comparison) -> str:
    """That the base is taken at its best on each metric; "" where it has one setting."""
    count = sum(model.role == "base" for model in comparison.models if model is not comparison.subject)
    if comparison.base is None or count < 2:
        return ""
    return (
        f"Of the {count} settings of the base, each metric is set against the one that is best on it; it is named "
        f"where it is not {comparison.base.label}."
    )


def _against(comparison: Comparison, named: Model) -> Findings:
    better, unclear, worse = [], [], []
    for metric in comparison.task.metrics:
        other = _on(comparison, named, metric)
        pair = comparison.pair(metric.name, comparison.subject.label, other.label)
        mine, theirs = (m.scores.metrics[metric.name] for m in (comparison.subject, other))
        if pair is None:
            continue
        change = pair.change(comparison.subject.label)
        verdict = Verdict(metric, mine, theirs, pair, change, row="" if other is named else other.label)
        if not differs(pair.p_holm):
            unclear.append(verdict)
        elif (change > 0) == (metric.higher_is_better is not False):
            better.append(verdict)
        else:
            worse.append(verdict)
    return Findings(named.label, tuple(better), tuple(unclear), tuple(worse))


def power_sentence(pair: Pair, comparison: Comparison) -> str:
    """What the test of this pair could have seen."""
    metric, seen = comparison.task.metric(pair.metric), pair.detectable
    start = f"{pair.a} against {pair.b}, {metric.name}:"
    chance = f"with {100 * POWER:.0f} % power"
    if seen.discordant is not None:
        basis = f"disagree on {100 * seen.discordant:.1f} % of {counted(seen.n, 'record')}"
        if seen.difference is None:
            return f"{start} the models {basis}, too few for the test to find any difference {chance}."
        size = gap(seen.difference, metric).lstrip("+")
        return f"{start} the models {basis}; a true difference of {size} or more would be found {chance}."
    if seen.difference is None:
        return f"{start} no item differs, so nothing can be said about what the test would find."
    size = gap(seen.difference, metric).lstrip("+")
    return f"{start} a true mean difference of {size} or more would be found {chance} on {counted(seen.n, 'record')}."


def curve_sentence(curve: Curve, kind: str, comparison: Comparison) -> str:
    """Whether the curve rises, by the paired test between its ends and between its last two places."""
    metric = comparison.task.metric(curve.metric)
    first, last = curve.points[0], curve.points[-1]
    name = f"{curve.name}, {metric.name}"
    if kind == "shots":
        top = max(curve.points[1:], key=lambda point: _good(point, metric))
        if first.x:
            return f"{name}: {_step(first, top, 'shots', metric, comparison)}."
        verdict = _step(first, top, "shots", metric, comparison)
        helps = _helps(first, top, metric, comparison)
        return f"{name}: few-shot examples {helps}; {verdict}, the best of the settings with examples."
    text = f"{name}: {_step(first, last, 'rows', metric, comparison)}"
    if len(curve.points) > 2:
        text += f"; at the end, {_step(curve.points[-2], last, 'rows', metric, comparison)}"
    return text + "."


def _good(point: Point, metric: Metric) -> float:
    return -point.mean if metric.higher_is_better is False else point.mean


def _helps(first: Point, top: Point, metric: Metric, comparison: Comparison) -> str:
    pair = comparison.pair(metric.name, first.labels[0], top.labels[0])
    if pair is None or not differs(pair.p_holm):
        return "do not clearly help"
    return "help" if (pair.change(top.labels[0]) > 0) == (metric.higher_is_better is not False) else "hurt"


def _step(a: Point, b: Point, unit: str, metric: Metric, comparison: Comparison) -> str:
    names = f"{number(a.mean, metric)} at {a.x:,.0f} {unit}, {number(b.mean, metric)} at {b.x:,.0f}"
    pair = comparison.pair(metric.name, a.labels[0], b.labels[0])
    if pair is None or len(a.labels) > 1 or len(b.labels) > 1:
        return f"{names} ({gap(b.mean - a.mean, metric)})"
    rows = {model.label: model.scores.metrics[metric.name] for model in comparison.models}
    common = on_common(pair, rows[pair.a], rows[pair.b])
    return f"{names} ({gap(pair.change(b.labels[0]), metric)}{common}, {p_value(pair.p_holm)})"


def spread_sentence(spread: Spread, comparison: Comparison) -> str:
    """How far runs of other seeds lie apart."""
    metric = comparison.task.metric(spread.metric)
    deviation = gap(spread.deviation, metric).lstrip("+")
    return (
        f"{spread.name}, {metric.name}: mean {number(spread.mean, metric)} over {counted(len(spread.values), 'seed')} "
        f"({', '.join(str(seed) for seed in spread.seeds)}), standard deviation {deviation}, from "
        f"{number(min(spread.values), metric)} to {number(max(spread.values), metric)}."
    )


def prompt_sentences(comparison: Comparison) -> list[str]:
    """Paired tests between rows that differ in the prompt only, on the headline metrics."""
    wanted = [metric.name for metric in comparison.task.metrics if metric.headline] or [comparison.metric.name]
    return [
        f"{found.a} ({found.prompt_a} prompt), {found.b} ({found.prompt_b} prompt). {paired_sentence(pair, comparison)}"
        for found in comparison.series.prompts
        for name in wanted
        if (pair := comparison.pair(name, found.a, found.b)) is not None
    ]


def leak_sentence(comparison: Comparison) -> str:
    """How many records are flagged and what they were compared with, or that nobody looked."""
    checked, count = comparison.checked, len(comparison.leaks)
    against = f"checked against {', '.join(checked.against)}" if checked.against else "not checked"
    against += f" (not looked through: {', '.join(checked.left_out)})" if checked.left_out else ""
    if not count:
        none = ": none of them is flagged" if checked.against else ""
        return f"Whether these {counted(comparison.n, 'record')} were seen in training was {against}{none}."
    flagged = f"{counted(count, 'record')} of {comparison.n:,} {plural(count, 'is', 'are')} flagged"
    found = f"{flagged}: seen in training, or too like it. The table has the headline metric with and without them."
    return f"{found} All were {against}." if checked.against else found


def economy_sentences(comparison: Comparison) -> list[str]:
    """Tuning cost, the cost of the tuned model's answers, and the break-even against every API row."""
    facts, label = comparison.economy, comparison.subject.label
    hours = "unknown" if facts.worker_hours is None else f"{facts.worker_hours:.2f} worker hours"
    if facts.tuning_usd is not None and facts.usd_per_worker_hour is not None:
        hours += f" at {usd(facts.usd_per_worker_hour)} each: {usd(facts.tuning_usd)}"
    elif facts.worker_hours is not None:
        hours += "; what they cost is unknown (no price per worker hour was given)"
    own = "not measured" if facts.subject_per_1000_usd is None else f"{usd(facts.subject_per_1000_usd)} per 1,000"
    found = [f"Tuning {label} took: {hours}.", f"Answers of {label} cost: {own}."]
    found += [_break_even(row, label) for row in facts.break_even]
    if not facts.break_even:
        found.append("Break-even against an API: unknown, because no row is an API with a recorded cost.")
    return found


def _break_even(row: BreakEven, label: str) -> str:
    start = f"Break-even against {row.api} ({usd(row.api_per_1000_usd)} per 1,000 answers):"
    if row.answers is None:
        return f"{start} {row.why}."
    return f"{start} {label} has paid for its tuning after {counted(row.answers, 'answer')}."


def reader_sentences(comparison: Comparison) -> list[str]:
    """What judges and extractors did and cost, per row: part of what answers of that row take to be used."""
    return [
        _reader(model.label, name, facts)
        for model in comparison.models
        for name, facts in model.scores.assisted.items()
    ]


def _reader(label: str, name: str, facts: Mapping[str, Any]) -> str:
    items, failures = int(facts.get("items", 0)), facts.get("failures") or {}
    failed = ", ".join(f"{kind} {count}" for kind, count in failures.items()) or "none"
    cost = facts.get("answers_cost_usd")
    price = "cost unknown" if cost is None or not items else f"{usd(1000 * cost / items)} per 1,000 answers"
    text = f"{label}, {name}: read by {facts.get('model')} (version {facts.get('version')}), {counted(items, 'item')}, "
    shared = int(facts.get("shared", 0))
    once = f" ({counted(shared, 'answer')} shared by equal questions, charged once)" if shared else ""
    text += f"failures: {failed}; {price}{once}"
    agreement = facts.get("agreement") or {}
    shown = ", ".join(f"{key} {value:.3g}" for key, value in agreement.items() if isinstance(value, int | float))
    return f"{text}; agreement over {facts.get('repeats')} readings: {shown}." if shown else f"{text}."


def usd(value: float) -> str:
    """ "$1,234.50"; small amounts keep two significant digits."""
    return f"${value:,.2f}" if value >= 0.1 or value == 0 else f"${value:.2g}"


def seconds(value: float | None) -> str:
    """ "0.42 s"; "" when it was not measured."""
    return "" if value is None else f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"
