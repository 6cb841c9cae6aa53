"""Line charts with intervals as coordinates: what the page draws as inline SVG, in its own colours and fonts.

Called by report for the few-shot and the learning curve. Coordinates are those of a 360 x 220 view box, y downward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2

from evaluation.series import Curve, Point
from tasks.base import Metric

LEFT, RIGHT, TOP, BOTTOM = 40, 348, 10, 184
MIN_GAP = 26  # between the labels of two places, so that they do not overlap


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """One metric: a polyline, its dots and the interval at each (x, y of the low end, y of the high end)."""

    name: str
    points: str
    dots: tuple[tuple[float, float], ...]
    whiskers: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart ready to be drawn."""

    title: str
    axis: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


def line_charts(curves: Sequence[Curve], metrics: Sequence[Metric], *, axis: str, log: bool) -> list[Chart]:
    """One chart per name and unit, a line per metric; `log` spaces the x-axis by doublings."""
    kinds = {metric.name: metric.kind for metric in metrics}
    groups: dict[tuple[str, bool], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.name, kinds[curve.metric] == "mean"), []).append(curve)
    return [_chart(name, group, axis=axis, log=log, free=free) for (name, free), group in groups.items()]


def _chart(name: str, curves: Sequence[Curve], *, axis: str, log: bool, free: bool) -> Chart:
    points = [point for curve in curves for point in curve.points]
    across = _scale([_step(point.x, log) for point in points], LEFT + 14, RIGHT - 14)
    top = max(point.high for point in points) if free else 1.0
    bottom = min(0.0, *(point.low for point in points)) if free else 0.0
    up = _scale([bottom, top], BOTTOM, TOP)
    places = sorted({point.x for point in points})
    return Chart(
        title=name,
        axis=axis,
        x_ticks=_apart([Tick(across(_step(x, log)), f"{x:,.0f}") for x in places]),
        y_ticks=tuple(
            Tick(up(value), f"{value:.2g}" if free else f"{100 * value:.0f}")
            for value in (bottom + (top - bottom) * part / 4 for part in range(5))
        ),
        lines=tuple(_line(curve, lambda point: across(_step(point.x, log)), up) for curve in curves),
    )


def _line(curve: Curve, across: Callable[[Point], float], up: Callable[[float], float]) -> Line:
    dots = tuple((round(across(point), 1), round(up(point.mean), 1)) for point in curve.points)
    return Line(
        name=curve.metric,
        points=" ".join(f"{x},{y}" for x, y in dots),
        dots=dots,
        whiskers=tuple(
            (round(across(point), 1), round(up(point.low), 1), round(up(point.high), 1)) for point in curve.points
        ),
    )


def _step(x: float, log: bool) -> float:
    return log2(x) if log and x > 0 else x


def _scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """A linear map of the range of `values` to start ... end; a range without width maps to the middle."""
    low, high = min(values), max(values)
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def _apart(ticks: Sequence[Tick]) -> tuple[Tick, ...]:
    """The ticks without those whose label would run into the one before; the last one always stays."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or tick.at - kept[-1].at >= MIN_GAP:
            kept.append(tick)
    if kept[-1] is not ticks[-1]:
        kept[-1] = ticks[-1]
    return tuple(kept)
