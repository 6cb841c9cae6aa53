"""PNG plots of a comparison: metrics with intervals, error categories, training loss.

Called by report, which links them from Markdown and embeds the loss curve in the HTML page (the page draws its bars
itself, so that they follow its width and colours). Figures are built without pyplot: no window, no global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.comparison import Comparison, Model
from evaluation.series import Curve
from tasks.base import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 144
SMOOTH_FROM = 60  # logged steps above which a running mean is drawn over the raw line
LABEL_CHARS = 28
# Okabe and Ito's palette, which stays apart under the common forms of colour blindness; grey is kept for "right".
CATEGORY_COLOURS = (
    "#d55e00",
    "#0072b2",
    "#e69f00",
    "#56b4e9",
    "#cc79a7",
    "#009e73",
    "#f0e442",
    "#7a5195",
    "#8c6d46",
    "#000000",
)
RIGHT_COLOUR = "#c9ced4"
SUBJECT_COLOUR = "#4a8fd3"
OTHER_COLOURS = ("#a3abb3", "#c6ccd2", "#848d96", "#dde1e5")


class _Ink(NamedTuple):
    text: str
    faint: str
    line: str
    raw: str


_LIGHT = _Ink(text="#1b1f24", faint="#d0d7de", line="#0b5cad", raw="#9db8d4")
_DARK = _Ink(text="#e4e7eb", faint="#3a424b", line="#6cb0ff", raw="#3f5f85")


def shares(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics that a bar from 0 to 100 % can show, good ones only: more is better."""
    return [metric for metric in metrics if metric.kind != "mean" and metric.higher_is_better]


def losses(lines: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(step, loss) of every line that has both, in step order; of a step logged twice the later line counts."""
    found = {}
    for line in lines:
        step, loss = line.get("step"), line.get("loss")
        if isinstance(step, int | float) and isinstance(loss, int | float) and loss - loss == 0:
            found[float(step)] = float(loss)
    return sorted(found.items())


def metrics_png(comparison: Comparison) -> bytes | None:
    """Bars with 95 % intervals, one group per metric, one bar per model; None without a metric to show."""
    metrics = shares(comparison.task.metrics)
    models = comparison.models
    if not metrics:
        return None
    figure, axes = _canvas(height=1.0 + 0.26 * len(metrics) * (len(models) + 1))
    thick = 0.8 / len(models)
    for place, model in enumerate(models):
        rows = [model.scores.metrics[metric.name] for metric in metrics]
        heights = [index - 0.4 + thick * (place + 0.5) for index in range(len(metrics))]
        means = [_percent(row.mean) for row in rows]
        low = [_length(mean, _percent(row.low)) for mean, row in zip(means, rows, strict=True)]
        high = [_length(_percent(row.high), mean) for mean, row in zip(means, rows, strict=True)]
        axes.barh(heights, means, height=0.86 * thick, color=_colour(comparison, model), label=_plain(model.label))
        axes.errorbar(means, heights, xerr=[low, high], fmt="none", ecolor="#1b1f24", elinewidth=1, capsize=2.5)
    axes.set_yticks(range(len(metrics)), [metric.name for metric in metrics])
    axes.set_ylim(len(metrics) - 0.5, -0.5)  # the first metric on top
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"% of {comparison.n:,} records, 95 % interval")
    _legend(figure, axes, columns=3)
    return _png(figure)


def _percent(share: float | None) -> float:
    """In percent; what was not measured is drawn as nothing, not as 0."""
    return math.nan if share is None else 100.0 * share


def _length(upper: float, lower: float) -> float:
    """Of an error bar; a mean of equal values may lie off them by the last bit, and no bar is shorter than nothing."""
    return math.nan if math.isnan(upper - lower) else max(0.0, upper - lower)


def errors_png(comparison: Comparison) -> bytes:
    """One stacked bar per model: right answers and the error categories."""
    figure, axes = _canvas(height=1.5 + 0.42 * len(comparison.models))
    rows = range(len(comparison.models))
    left = [0.0] * len(rows)
    for category, colour in [(None, RIGHT_COLOUR), *colours(comparison)]:
        widths = [100 * count(model, category) / model.scores.n for model in comparison.models]
        label = _plain(category or "no error")
        axes.barh(rows, widths, left=left, height=0.62, color=colour, label=label, edgecolor="white")
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(rows, [_plain(model.label) for model in comparison.models])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"% of {comparison.n:,} records")
    _legend(figure, axes, columns=4)
    return _png(figure)


def loss_png(steps: Sequence[tuple[float, float]], *, dark: bool = False) -> bytes:
    """Training loss by optimizer step, with a running mean when there are many steps; for a light or a dark page."""
    ink = _DARK if dark else _LIGHT
    figure, axes = _canvas(width=5.6, height=3.0, ink=ink)
    axes.grid(axis="y", color=ink.faint, linewidth=0.6)
    x, y = zip(*steps, strict=True)
    smooth = len(steps) >= SMOOTH_FROM
    axes.plot(x, y, color=ink.raw if smooth else ink.line, linewidth=1.0 if smooth else 1.6, label="each logged step")
    if smooth:
        width = 2 * (len(steps) // 40) + 1
        axes.plot(x, _running_mean(y, width), color=ink.line, linewidth=1.8, label=f"centred mean of {width}")
        _legend(figure, axes, columns=2, ink=ink)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per supervised token)")
    if min(y) >= 0:
        axes.set_ylim(bottom=0)
    return _png(figure)


def curves_png(comparison: Comparison, curves: Sequence[Curve], axis: str, *, log: bool = False) -> bytes | None:
    """A line with intervals per curve, shares in per cent; None without a curve."""
    kinds = {metric.name: metric.kind for metric in comparison.task.metrics}
    shown = [curve for curve in curves if kinds[curve.metric] != "mean"]
    if not shown:
        return None
    figure, axes = _canvas(height=3.4)
    axes.grid(axis="y", color=_LIGHT.faint, linewidth=0.6)
    for place, curve in enumerate(shown):
        means = [100 * point.mean for point in curve.points]
        ends = [
            [_length(100 * point.mean, 100 * point.low) for point in curve.points],
            [_length(100 * point.high, 100 * point.mean) for point in curve.points],
        ]
        colour = CATEGORY_COLOURS[(place + 1) % len(CATEGORY_COLOURS)]
        label = _plain(f"{curve.name}, {curve.metric}")
        x = [point.x for point in curve.points]
        axes.errorbar(x, means, yerr=ends, marker="o", markersize=4, capsize=2.5, color=colour, label=label)
    if log:
        axes.set_xscale("log", base=2)
    places = sorted({point.x for curve in shown for point in curve.points})
    axes.set_xticks(places, [f"{x:,.0f}" for x in places])
    axes.set_ylim(0, 100)
    axes.set_xlabel(axis)
    axes.set_ylabel("%, 95 % interval")
    _legend(figure, axes, columns=2)
    return _png(figure)


def colours(comparison: Comparison) -> list[tuple[str, str]]:
    """(error category, colour) for the categories that occur: format violations, then the others, as the task lists."""
    task = comparison.task
    seen = {name for model in comparison.models for name in model.scores.errors}
    known = [name for name in task.errors if name in seen]
    names = sorted([*known, *sorted(seen.difference(known))], key=lambda name: name not in task.format_errors)
    return [(name, CATEGORY_COLOURS[place % len(CATEGORY_COLOURS)]) for place, name in enumerate(names)]


def count(model: Model, category: str | None) -> int:
    """Records with that error category; None: with no error at all."""
    errors = model.scores.errors
    return model.scores.n - sum(errors.values()) if category is None else errors.get(category, 0)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Centred, so that the line does not trail behind the curve; narrower at both ends."""
    half = width // 2
    reaches = (min(half, place, len(values) - 1 - place) for place in range(len(values)))
    windows = [values[place - reach : place + reach + 1] for place, reach in enumerate(reaches)]
    return [sum(window) / len(window) for window in windows]


def _colour(comparison: Comparison, model: Model) -> str:
    if model is comparison.subject:
        return SUBJECT_COLOUR
    others = [other for other in comparison.models if other is not comparison.subject]
    return OTHER_COLOURS[others.index(model) % len(OTHER_COLOURS)]


def _plain(label: str) -> str:
    """A label that matplotlib takes literally ("$" would start a formula) and that fits beside an axis."""
    short = label if len(label) <= LABEL_CHARS else label[: LABEL_CHARS - 3] + "..."
    readable = "".join(c if c.isprintable() else "?" for c in short)
    return readable.replace("\\", "/").replace("$", r"\$").lstrip("_") or "?"


def _canvas(*, height: float, width: float = 7.2, ink: _Ink = _LIGHT) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # half a second to import: only when a report is drawn

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.patch.set_alpha(0.0 if ink is _DARK else 1.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ink.faint)
    axes.tick_params(colors=ink.text, labelsize=9, color=ink.faint)
    axes.xaxis.label.set_color(ink.text)
    axes.yaxis.label.set_color(ink.text)
    axes.grid(axis="x", color=ink.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(figure: Figure, axes: Axes, *, columns: int, ink: _Ink = _LIGHT) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=9, labelcolor=ink.text
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # no version: same figures, same bytes
    return buffer.getvalue()
