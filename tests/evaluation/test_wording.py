from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evaluation import wording
from evaluation.compare import measure
from evaluation.comparison import Comparison, Entry
from evaluation.intervals import Estimate
from tasks.base import Metric, Record, Task

Compared = Callable[..., Comparison]
SHARE = Metric("m", "")
FREE = Metric("m", "", kind="mean")


@pytest.fixture
def compared(fake_task: Task, many: list[Record]) -> Compared:
    def build(*entries: Entry, **given: Any) -> Comparison:
        options: dict[str, Any] = {"limit": None, "processes": 1, "spec": None, "source": None, "split": None}
        shown: dict[str, Any] = {"title": "t", "loss_curve": (), "provenance": {}}
        return measure(entries, task=fake_task, records=many, **(options | shown | given))

    return build


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [(0.9333, SHARE, "93.3 %"), (1.0, SHARE, "100.0 %"), (3.4, FREE, "3.40"), (None, SHARE, "n/a")],
)
def test_number(value: float | None, metric: Metric, text: str) -> None:
    assert wording.number(value, metric) == text


def test_interval_and_gap() -> None:
    assert wording.interval(Estimate(0.5, 0.401, 0.6, 9), SHARE) == "[40.1, 60.0]"
    assert wording.interval(Estimate(0.5, -0.25, 1.0, 9), FREE) == "[\u22120.25, 1.00]"
    assert wording.interval(Estimate(None, None, None, 0), SHARE) == ""
    assert wording.gap(0.518, SHARE) == "+51.8 points"
    assert wording.gap(-0.518, SHARE) == "\u221251.8 points"
    assert wording.gap(-0.0001, SHARE) == "0.0 points"


@pytest.mark.parametrize(("p", "text"), [(0.0009, "p < 0.001"), (0.0321, "p = 0.032"), (1.0, "p = 1.000")])
def test_p_value(p: float, text: str) -> None:
    assert wording.p_value(p) == text


def test_headline_of_a_gain(compared: Compared, entry: Callable[..., Entry], many: list[Record]) -> None:
    found = compared(entry("base", many, set(range(90))), entry("tuned", many, set(range(30))))
    assert wording.headline(found) == (
        "On backwards, tuned scores 75.0 % for correct over 120 records: 50.0 points above base (25.0 %; p < 0.001)."
    )


def test_headline_of_a_loss_says_so(compared: Compared, entry: Callable[..., Entry], many: list[Record]) -> None:
    found = compared(entry("base", many, set(range(30))), entry("tuned", many, set(range(90))))
    assert wording.headline(found) == (
        "On backwards, tuned scores 25.0 % for correct over 120 records: 50.0 points below base (75.0 %; p < 0.001), "
        "so fine-tuning made this measure worse."
    )


def test_headline_of_a_gap_that_chance_explains(
    compared: Compared, entry: Callable[..., Entry], many: list[Record]
) -> None:
    found = compared(entry("base", many, {0, 1, 2}), entry("tuned", many, {3}))
    assert wording.headline(found) == (
        "On backwards, tuned scores 99.2 % for correct over 120 records: not clearly different from base (97.5 %; "
        "p = 0.625: chance could explain the 1.7 points), so this test shows no gain from fine-tuning."
    )


def test_headline_names_the_best_other_row_and_missing_answers(
    compared: Compared, entry: Callable[..., Entry], many: list[Record]
) -> None:
    base = entry("base", many[:100], set(range(90)))
    found = compared(entry("gpt-4", many, set()), base, entry("tuned", many, set(range(30))))
    assert wording.headline(found) == (
        "On backwards, tuned scores 75.0 % for correct over 120 records: 66.7 points above base (8.3 %; p < 0.001); "
        "25.0 points below gpt-4, the best of the 2 other rows (100.0 %; p < 0.001); missing predictions count as "
        "wrong (20 of base)."
    )


def test_headline_says_that_the_other_rows_are_tied(
    compared: Compared, entry: Callable[..., Entry], many: list[Record]
) -> None:
    rows = [entry(f"base-{shots}shot", many, set(range(120))) for shots in (0, 4, 8)]
    assert wording.headline(compared(*rows, entry("tuned", many, set()))) == (
        "On backwards, tuned scores 100.0 % for correct over 120 records: 100.0 points above base-0shot, which is tied "
        "with the rest of the 3 other rows (0.0 %; p < 0.001)."
    )
    level = [entry("gpt-4", many, set(range(60))), entry("base", many, set(range(60))), rows[0]]
    assert wording.headline(compared(*level, entry("tuned", many, set()))) == (
        "On backwards, tuned scores 100.0 % for correct over 120 records: 50.0 points above base, which is tied with 1 "
        "more as the best of the 3 other rows (50.0 %; p < 0.001)."
    )


def test_headline_tells_the_difference_that_was_tested(compared: Compared, partly: Callable[..., Entry]) -> None:
    """The base's mean is the higher one, over easy records that the tuned model has no value for; where both have one,
    the tuned model is better, and that is what the test says.
    """
    base = partly("base", {place: place < 70 for place in range(120)})
    tuned = partly("tuned", {place: place < 90 for place in range(60, 120)})
    assert wording.headline(compared(base, tuned)) == (
        "On backwards, tuned scores 50.0 % for correct over 60 records: 33.3 points above base on the 60 records that "
        "both have a value for (58.3 %; p < 0.001)."
    )
    close = partly("base", {place: place < 60 or place in (90, 91) for place in range(120)})
    near = partly("tuned", {place: place in (90, 91, 92) for place in range(60, 120)})
    assert wording.headline(compared(close, near)).endswith(
        "not clearly different from base (51.7 %; p = 1.000: chance could explain the 1.7 points on the 60 records "
        "that both have a value for), so this test shows no gain from fine-tuning."
    )


def test_headline_draws_no_conclusion_about_tuning_where_nothing_was_tuned(
    compared: Compared, entry: Callable[..., Entry], many: list[Record]
) -> None:
    text = wording.headline(compared(entry("a", many, set()), entry("b", many, set(range(90)))))
    assert "below a" in text
    assert "tuning" not in text


def test_headline_of_a_single_model(compared: Compared, entry: Callable[..., Entry], many: list[Record]) -> None:
    text = wording.headline(compared(entry("tuned", many, set())))
    assert text.endswith("(95 % interval [96.9, 100.0]) over 120 records; there is no other model to compare with.")


def test_a_paired_test_is_told_from_the_subjects_side(
    compared: Compared, entry: Callable[..., Entry], many: list[Record]
) -> None:
    found = compared(entry("base", many, set(range(90))), entry("tuned", many, set(range(30))))
    pair = found.pair("correct", "base", "tuned")
    assert pair is not None
    text = wording.paired_sentence(pair, found)
    assert text.startswith(
        "correct: of 120 records, tuned scores higher on 60 and base on 0, 60 tie. tuned minus base is +50.0 points [4"
    )
    assert text.endswith("more than chance explains (exact McNemar test, p < 0.001).")


def test_limits_are_said(compared: Compared, entry: Callable[..., Entry], many: list[Record]) -> None:
    base = entry("base", many[:30], set(), shots=8, prompt="natural")
    found = compared(base, entry("tuned", many, set(), prompt="structured"), limit=40, source="bundled")
    text = "\n".join(wording.limits(found))
    for part in (
        "40 records were scored, which is a small set",
        "Only the first 40 records",
        "generated by fulltune's own code",
        "base: 10 records have no answer",
        "Rows differ in prompt or shots",
        "One training run has one seed",
        "Published figures were measured by others",
    ):
        assert part in text


def test_limits_do_not_cry_wolf(compared: Compared, entry: Callable[..., Entry], many: list[Record]) -> None:
    text = "\n".join(wording.limits(compared(entry("a", many, set()), entry("tuned", many, set()), source="hub")))
    for part in ("small set", "Only the first", "bundled", "have no answer", "differ in prompt", "Holm"):
        assert part not in text
