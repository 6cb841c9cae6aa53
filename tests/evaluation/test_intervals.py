from __future__ import annotations

import numpy as np
import pytest

from evaluation.intervals import RESAMPLES, Estimate, bootstrap_mean, estimate, resampled_means, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_a_perfect_score_is_not_certain() -> None:
    found = estimate([1.0] * 20, "fraction")
    assert found.mean == 1.0
    assert found.low == pytest.approx(1 - 0.1611, abs=5e-5)


def test_bootstrap_agrees_with_the_normal_interval_on_many_values() -> None:
    values = np.random.default_rng(1).uniform(size=4_000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert bootstrap_mean(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_bootstrap_does_not_depend_on_the_order() -> None:
    values = np.random.default_rng(2).uniform(size=300)
    assert bootstrap_mean(values) == bootstrap_mean(values[::-1])
    assert len(resampled_means(values)) == RESAMPLES


@pytest.mark.parametrize("distinct", [3, 100], ids=["counts", "places"])
def test_both_ways_of_resampling_give_every_resample_and_the_right_spread(
    distinct: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.tile(np.linspace(0.0, 1.0, distinct), 300 // distinct)
    monkeypatch.setattr("evaluation.intervals._CELLS", 999 * (3 if distinct == 3 else len(values)))  # uneven blocks
    means = resampled_means(values)
    assert len(means) == RESAMPLES
    assert means.mean() == pytest.approx(0.5, abs=0.002)
    assert means.std() == pytest.approx(values.std() / np.sqrt(len(values)), rel=0.05)


def test_no_items_have_no_mean() -> None:
    assert estimate([], "proportion") == Estimate(None, None, None, 0)
    assert estimate([], "mean").as_json() == {"mean": None, "ci95": [None, None], "n": 0}


def test_a_proportion_with_a_value_between_is_a_mistake_of_the_task() -> None:
    with pytest.raises(ValueError, match=r"got 0\.5"):
        estimate([0.0, 0.5], "proportion")


def test_free_numbers_are_bootstrapped_even_when_they_are_0_and_1() -> None:
    assert estimate([0.0] * 9 + [1.0], "mean").low == 0.0  # Wilson's would be 0.018
    assert estimate([0.0] * 9 + [1.0], "fraction").low == pytest.approx(0.0179, abs=5e-5)
