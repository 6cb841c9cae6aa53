from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import stdev
from typing import Any

import pytest

from evaluation import charts, findings, report
from evaluation.compare import measure
from evaluation.comparison import Comparison, Entry
from tasks.base import Record, Task

Build = Callable[..., Entry]


def _measure(entries: list[Entry], task: Task, records: list[Record]) -> Comparison:
    none: dict[str, Any] = dict.fromkeys(("source", "split", "spec", "limit"))
    empty: dict[str, Any] = {"title": "t", "loss_curve": (), "provenance": {}}
    return measure(entries, task=task, records=records, processes=1, **none, **empty)


def _wrong(count: int) -> set[int]:
    return set(range(count))


@pytest.fixture
def found(entry: Build, fake_task: Task, many: list[Record]) -> Comparison:
    """Base at 0, 2 and 8 shots; tuned on 50 rows and, with two seeds, on 400; the tuned one in plain words as well."""
    tuned: dict[str, Any] = {"role": "tuned", "setting": "s", "prompt": "structured", "shots": 0}
    rows = [
        entry(f"base-{shots}shot", many, _wrong(wrong), role="base", prompt="natural", shots=shots)
        for shots, wrong in ((8, 60), (0, 110), (2, 90))
    ]
    rows += [
        entry("small", many, _wrong(50), **tuned, training_rows=50, seed=1),
        entry("large-natural", many, _wrong(70), **(tuned | {"prompt": "natural"}), training_rows=400, seed=1),
        entry("large-1", many, _wrong(12), **tuned, training_rows=400, seed=1),
        entry("large-2", many, _wrong(24), **tuned, training_rows=400, seed=2),
        entry("stranger", many, _wrong(1), role="tuned", training_rows=400, seed=3, shots=0, prompt="structured"),
    ]
    return _measure(rows, fake_task, many)


def test_every_metric_is_set_against_the_base_that_is_best_on_it(
    entry: Build, fake_task: Task, many: list[Record]
) -> None:
    """One setting of the base is right more often, the other one keeps the form; all are level on nothing."""
    right = entry("base-4shot", many, set(range(100)), says="LOUD", role="base")
    formed = entry("base-0shot", many, set(range(120)), role="base")
    comparison = _measure([formed, right, entry("tuned", many, set(range(3)), role="tuned")], fake_task, many)
    (against,) = findings.findings(comparison)
    assert against.other == "base-4shot"
    told = {verdict.metric.name: verdict.text for verdict in (*against.better, *against.unclear, *against.worse)}
    assert told["correct"] == "correct: 97.5 % against 16.7 % (p < 0.001)"
    assert told["format_violation"] == "format_violation: 0.0 % against 0.0 % of base-0shot (p = 1.000)"
    assert [model.label for model in findings.rivals(comparison, fake_task.metric("format_violation"))] == [
        "base-0shot"
    ]
    text = report.render_markdown(comparison, [])
    said = "Of the 2 settings of the base, each metric is set against the one that is best on it"
    assert said in text
    assert said in report.render_html(comparison)
    assert said not in report.render_markdown(replace(comparison, models=comparison.models[1:]), [])


def test_few_shot_curves_are_in_order_of_shots(found: Comparison) -> None:
    (curve,) = found.series.few_shot
    assert (curve.name, curve.metric) == ("base", "correct")
    assert [(point.x, point.labels) for point in curve.points] == [
        (0, ("base-0shot",)),
        (2, ("base-2shot",)),
        (8, ("base-8shot",)),
    ]
    assert [point.mean for point in curve.points] == pytest.approx([10 / 120, 30 / 120, 60 / 120])
    assert all(point.low < point.mean < point.high for point in curve.points)
    said = findings.curve_sentence(curve, "shots", found)
    assert said.startswith(
        "base, correct: few-shot examples help; 8.3 % at 0 shots, 50.0 % at 8 (+41.7 points, p < 0.001)"
    )


def test_learning_curves_join_runs_of_one_recipe_and_average_their_seeds(found: Comparison) -> None:
    (curve,) = found.series.learning
    assert [(point.x, point.labels) for point in curve.points] == [(50, ("small",)), (400, ("large-1", "large-2"))]
    last = curve.points[-1]
    assert (last.mean, last.low, last.high) == pytest.approx((0.85, 0.8, 0.9))
    assert "58.3 % at 50 rows, 85.0 % at 400 (+26.7 points)" in findings.curve_sentence(curve, "rows", found)


def test_seeds_have_a_spread(found: Comparison) -> None:
    (spread,) = found.series.seeds
    assert (spread.seeds, spread.labels) == ((1, 2), ("large-1", "large-2"))
    assert spread.deviation == pytest.approx(stdev([0.9, 0.8]))
    said = findings.spread_sentence(spread, found)
    assert "mean 85.0 % over 2 seeds (1, 2), standard deviation 7.1 points, from 80.0 % to 90.0 %" in said


def test_prompts_are_compared_for_the_same_model_only(found: Comparison) -> None:
    (pair,) = found.series.prompts
    assert {pair.a: pair.prompt_a, pair.b: pair.prompt_b} == {"large-natural": "natural", "large-1": "structured"}
    (said,) = findings.prompt_sentences(found)
    assert "48.3 points" in said


def test_few_shot_examples_that_do_nothing_are_called_that(entry: Build, fake_task: Task, many: list[Record]) -> None:
    rows = [entry(f"base-{k}", many, _wrong(60 + k), role="base", prompt="natural", shots=k) for k in (0, 1, 2)]
    comparison = _measure(rows, fake_task, many)
    assert "do not clearly help" in findings.curve_sentence(comparison.series.few_shot[0], "shots", comparison)


def test_a_server_is_not_the_model_of_the_same_name(entry: Build, fake_task: Task, many: list[Record]) -> None:
    rows = [entry(f"base-{k}", many, _wrong(50 + k), role="base", prompt="natural", shots=k, model="m") for k in (0, 4)]
    served = {"base_url": "http://127.0.0.1:8000/v1", "prompt": "natural", "shots": 0, "model": "m"}
    rows.append(entry("served", many, _wrong(9), **served))
    (curve,) = _measure(rows, fake_task, many).series.few_shot
    assert [(point.x, point.labels) for point in curve.points] == [(0, ("base-0",)), (4, ("base-4",))]


def test_rows_without_these_details_make_no_series(entry: Build, fake_task: Task, many: list[Record]) -> None:
    rows = [entry("base", many, {1}), entry("tuned", many, {2})]
    series = _measure(rows, fake_task, many).series
    assert (series.few_shot, series.learning, series.seeds, series.prompts) == ((), (), (), ())


def test_where_tuning_did_not_help_is_said(entry: Build, fake_task: Task, many: list[Record]) -> None:
    rows = [entry("base", many, _wrong(20)), entry("api", many, _wrong(18)), entry("tuned", many, _wrong(90))]
    against_base, against_api = findings.findings(_measure(rows, fake_task, many))
    assert (against_base.other, against_api.other) == ("base", "api")
    assert [verdict.metric.name for verdict in against_base.worse] == ["correct", "shared"]
    assert [verdict.metric.name for verdict in against_base.unclear] == ["format_violation"]
    assert against_base.better == ()


def test_better_and_worse_follow_the_test_on_common_records(partly: Build, fake_task: Task, many: list[Record]) -> None:
    """The row with the higher mean has it from records that the other has no value for."""
    base = partly("base", {place: place < 70 for place in range(120)}, role="base", prompt="natural", shots=0)
    tuned = partly("tuned", {place: place < 90 for place in range(60, 120)}, role="tuned")
    (against,) = findings.findings(_measure([base, tuned], fake_task, many))
    assert [verdict.text for verdict in against.better] == [
        "correct: 50.0 % against 58.3 %; +33.3 points on the 60 records that both have a value for (p < 0.001)"
    ]
    assert against.worse == ()
    shots = partly("shots", {place: place < 90 for place in range(60, 120)}, role="base", prompt="natural", shots=4)
    comparison = _measure([base, shots], fake_task, many)
    (curve,) = (curve for curve in comparison.series.few_shot if curve.metric == "correct")
    assert (
        "few-shot examples help; 58.3 % at 0 shots, 50.0 % at 4 (+33.3 points on the 60 records that both have a "
        "value for, p < 0.001)"
    ) in findings.curve_sentence(curve, "shots", comparison)


def test_charts_keep_inside_their_frame_and_put_more_higher(found: Comparison, fake_task: Task) -> None:
    (chart,) = charts.line_charts(found.series.learning, fake_task.metrics, axis="rows", log=True)
    (line,) = chart.lines
    assert [tick.label for tick in chart.x_ticks] == ["50", "400"]
    assert [tick.label for tick in chart.y_ticks] == ["0", "25", "50", "75", "100"]
    for x, y in line.dots:
        assert charts.LEFT <= x <= charts.RIGHT
        assert charts.TOP <= y <= charts.BOTTOM
    assert line.dots[1][1] < line.dots[0][1]
    assert all(low >= y >= high for (_, y), (_, low, high) in zip(line.dots, line.whiskers, strict=True))


def test_labels_of_an_axis_do_not_run_into_each_other(entry: Build, fake_task: Task, many: list[Record]) -> None:
    rows = [entry(f"base-{k}", many, {k}, role="base", shots=k) for k in (0, 1, 2, 30, 31, 32)]
    comparison = _measure(rows, fake_task, many)
    (chart,) = charts.line_charts(comparison.series.few_shot, fake_task.metrics, axis="shots", log=False)
    places = [tick.at for tick in chart.x_ticks]
    assert all(b - a >= charts.MIN_GAP for a, b in zip(places, places[1:], strict=False))
    assert chart.x_ticks[-1].label == "32"
