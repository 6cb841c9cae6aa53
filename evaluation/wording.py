"""The report's words and numbers: every sentence that depends on the figures is written here, and only here.

Used by report. The rule is that a sentence says what the figures say, also when they disappoint: a tuned model that
is worse is called worse, and a gap that chance explains is called that.
"""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.comparison import Comparison, Model, Pair, best
from evaluation.intervals import BCA_UP_TO, Estimate
from evaluation.paired import differs
from tasks.base import Metric

MINUS = "\u2212"
INTERVALS = (
    "Intervals are 95 %: Wilson's for shares of 0/1 items, a bootstrap of the mean with a fixed seed for others (BCa, "
    f"above {BCA_UP_TO:,} items percentile)."
)
SMALL = 100  # records below which the report warns that the set is small


def number(value: float | None, metric: Metric) -> str:
    """A mean as a table shows it: a percentage, or a plain number for metrics that are no share of anything."""
    if value is None:
        return "n/a"
    return f"{value:.2f}" if metric.kind == "mean" else f"{100 * value:.1f} %"


def interval(estimate: Estimate, metric: Metric) -> str:
    """The 95 % interval in brackets, in the unit of `number` but without repeating it."""
    if estimate.low is None or estimate.high is None:
        return ""
    factor, digits = (1, 2) if metric.kind == "mean" else (100, 1)
    return f"[{_signed(factor * estimate.low, digits)}, {_signed(factor * estimate.high, digits)}]"


def gap(difference: float, metric: Metric) -> str:
    """A difference of two means with its sign: "+51.8 points"."""
    if metric.kind == "mean":
        return _signed(difference, 2, plus=True)
    return f"{_signed(100 * difference, 1, plus=True)} points"


def p_value(p: float) -> str:
    """ "p < 0.001" or "p = 0.032"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _signed(value: float, digits: int, *, plus: bool = False) -> str:
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0.0:
        return text
    return (MINUS if value < 0 else "+" if plus else "") + text


def headline(comparison: Comparison) -> str:
    """One sentence: how the subject does, and how that stands to the base and to the best other row."""
    subject, metric = comparison.subject, comparison.metric
    estimate = subject.scores.metrics[metric.name]
    start = f"On {comparison.task.name}, {subject.label} scores {number(estimate.mean, metric)} for {metric.name}"
    over = f"over {counted(estimate.n, 'record')}"
    others = [model for model in comparison.models if model is not subject]
    if comparison.base is None:
        return f"{start} (95 % interval {interval(estimate, metric)}) {over}; there is no other model to compare with."
    top = best(others, metric)
    level = [model for model in others if top is not None and _mean(model, metric) == _mean(top, metric)]
    if comparison.base in level:
        top = comparison.base
    rank = _rank(len(level), len(others))
    clauses = [_clause(comparison, comparison.base, rank=rank if top is comparison.base else "")]
    clauses[0] += _verdict(comparison)
    if top is not None and top is not comparison.base:
        clauses.append(_clause(comparison, top, rank=rank))
    return f"{start} {over}: {'; '.join(clauses)}{_missing(subject, comparison.base)}."


def _mean(model: Model, metric: Metric) -> float | None:
    return model.scores.metrics[metric.name].mean


def _rank(level: int, others: int) -> str:
    """What the best of the other rows is among them, `level` of which have its mean; "" where there is only one."""
    if others < 2:
        return ""
    if level == others:
        return f", which is tied with the rest of the {others} other rows"
    tied = f"which is tied with {level - 1} more as " if level > 1 else ""
    return f", {tied}the best of the {others} other rows"


def _clause(comparison: Comparison, other: Model, *, rank: str) -> str:
    metric = comparison.metric
    mine, theirs = (m.scores.metrics[metric.name] for m in (comparison.subject, other))
    pair = comparison.pair(metric.name, comparison.subject.label, other.label)
    name = other.label + rank
    if pair is None:
        return f"nothing to set against {name}"
    change = pair.change(comparison.subject.label)
    size = gap(abs(change), metric).lstrip("+")
    common = on_common(pair, mine, theirs)
    facts = f"{number(theirs.mean, metric)}; {p_value(pair.p_holm)}"
    if not differs(pair.p_holm):
        return f"not clearly different from {name} ({facts}: chance could explain the {size}{common})"
    return f"{size} {'above' if change > 0 else 'below'} {name}{common} ({facts})"


def on_common(pair: Pair, *estimates: Estimate) -> str:
    """ " on the 60 records that both have a value for", where these are not the records of both means; else ""."""
    if all(estimate.n == pair.result.n for estimate in estimates):
        return ""
    return f" on the {counted(pair.result.n, 'record')} that both have a value for"


def _verdict(comparison: Comparison) -> str:
    """What follows for fine-tuning, where the rows say which is which and the answer is unwelcome."""
    subject, base, metric = comparison.subject, comparison.base, comparison.metric
    if base is None or (subject.role, base.role) != ("tuned", "base"):
        return ""
    pair = comparison.pair(metric.name, subject.label, base.label)
    if pair is None or not differs(pair.p_holm):
        return ", so this test shows no gain from fine-tuning"
    change = pair.change(subject.label)
    better = change > 0 if metric.higher_is_better is not False else change < 0
    return "" if better else ", so fine-tuning made this measure worse"


def _missing(*models: Model) -> str:
    counted = [f"{model.scores.missing} of {model.label}" for model in models if model.scores.missing]
    return f"; missing predictions count as wrong ({', '.join(counted)})" if counted else ""


def paired_sentence(pair: Pair, comparison: Comparison) -> str:
    """A paired test in plain words, told from the subject's side where it takes part."""
    metric, result = comparison.task.metric(pair.metric), pair.result
    swap = pair.b == comparison.subject.label
    a, b = (pair.b, pair.a) if swap else (pair.a, pair.b)
    only_a, only_b = (result.only_b, result.only_a) if swap else (result.only_a, result.only_b)
    sign = -1.0 if swap else 1.0
    ends = sorted((sign * result.low, sign * result.high))
    span = interval(Estimate(None, ends[0], ends[1], result.n), metric)
    test = "exact McNemar test" if result.test == "mcnemar_exact" else "paired bootstrap"
    corrected = f", Holm-corrected over {pair.comparisons} pairs" if pair.comparisons > 1 else ""
    verdict = "more than chance explains" if differs(pair.p_holm) else "chance could explain it"
    return (
        f"{metric.name}: of {counted(result.n, 'record')}, {a} scores higher on {only_a} and {b} on {only_b}, "
        f"{result.n - only_a - only_b} tie. {a} minus {b} is {gap(sign * result.difference, metric)} {span}; "
        f"{verdict} ({test}, {p_value(pair.p_holm)}{corrected})."
    )


def limits(comparison: Comparison) -> list[str]:
    """What these figures cannot say, most important first."""
    found = [*_about_records(comparison), *_about_answers(comparison)]
    if not comparison.series.seeds:
        found.append(
            "The intervals and tests cover the choice of test records only. One training run has one seed; another "
            "seed gives other figures."
        )
    if any(pair.comparisons > 1 for pair in comparison.pairs):
        found.append(
            "P-values are corrected (Holm) over the pairs of models within each metric, not over the metrics, which "
            "overlap: take the headline metric as the test and the others as description."
        )
    if comparison.task.published:
        found.append(
            "Published figures were measured by others with their own models, prompts, splits and scorers: they are "
            "context, not rows of this comparison."
        )
    return found


def _about_records(comparison: Comparison) -> list[str]:
    found = []
    estimate = comparison.subject.scores.metrics[comparison.metric.name]
    if estimate.low is not None and estimate.high is not None:
        width = gap((estimate.high - estimate.low) / 2, comparison.metric).lstrip("+")
        small = ", which is a small set" if comparison.n < SMALL else ""
        found.append(
            f"{counted(comparison.n, 'record')} {plural(comparison.n, 'was', 'were')} scored{small}: the headline "
            f"figure is known to about \u00b1 {width}."
        )
    if comparison.limit:
        found.append(f"Only the first {comparison.limit} records were scored, not the whole split.")
    if comparison.source == "bundled":
        found.append(
            "The records are the bundled ones, generated by fulltune's own code. They show that the pipeline works; "
            "they say little about text that people wrote."
        )
    return found


def _about_answers(comparison: Comparison) -> list[str]:
    found = []
    for model in comparison.models:
        if model.scores.missing:
            found.append(f"{model.label}: {model.scores.missing} records have no answer and count as wrong.")
        if model.scores.truncated:
            found.append(
                f"{model.label}: {counted(model.scores.truncated, 'answer')} hit the token limit and may be wrong for "
                "that reason alone."
            )
    prompts = {(str(model.details.get("prompt")), str(model.details.get("shots"))) for model in comparison.models}
    if len(prompts) > 1:
        found.append(
            "Rows differ in prompt or shots (see how each row was made), so gaps are not due to weights alone."
        )
    return found


def warnings(comparison: Comparison) -> list[str]:
    """What went wrong with the files, per model."""
    return [f"{model.label}: {text}" for model in comparison.models for text in model.scores.warnings]


def loss_sentence(steps: Sequence[tuple[float, float]]) -> str:
    """The loss curve in words, for those who do not see it: [(step, loss)], at least one."""
    (first, start), (last, end) = steps[0], steps[-1]
    lowest_step, lowest = min(steps, key=lambda pair: pair[1])
    return (
        f"Training loss over {counted(len(steps), 'logged step')}: {start:.3f} at step {first:g}, {end:.3f} at step "
        f"{last:g}, lowest {lowest:.3f} at step {lowest_step:g}."
    )


def counted(count: int, noun: str) -> str:
    """ "1 record", "1,234 records"."""
    return f"{count:,} {noun}{plural(count, '', 's')}"


def plural(count: int, one: str, many: str) -> str:
    """`one` for a count of 1, else `many`."""
    return one if count == 1 else many
