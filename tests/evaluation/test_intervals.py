from __future__ import annotations

import numpy as np
import pytest

from evaluation.intervals import BCA_UP_TO, RESAMPLES, Estimate, bootstrap_mean, estimate, wilson


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


@pytest.mark.parametrize("n", [BCA_UP_TO, 4 * BCA_UP_TO], ids=["BCa", "percentile"])
def test_bootstrap_agrees_with_the_normal_interval_on_many_values(n: int) -> None:
    values = np.random.default_rng(1).uniform(size=n)
    half = 1.96 * values.std() / np.sqrt(n)
    low, high = bootstrap_mean(values).interval
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_the_mouse_data_of_efron_and_tibshirani() -> None:
    # An Introduction to the Bootstrap (1993), table 2.1: treated mice, mean 86.86, standard error by theory 25.24;
    # their bootstrap standard errors run to 23.36, the limit of the plug-in estimate.
    found = bootstrap_mean(np.array([94.0, 197, 16, 38, 99, 141, 23]))
    assert found.means.mean() == pytest.approx(86.86, abs=1.0)
    assert found.means.std() == pytest.approx(23.36, rel=0.03)
    low, high = found.interval
    assert high - 86.86 > 86.86 - low  # the values lean to the right, and so does the interval


def test_the_interval_of_skewed_values_leans_as_far_as_they_do() -> None:
    values = np.random.default_rng(7).exponential(size=40)
    for sign in (1.0, -1.0):
        found = bootstrap_mean(sign * values)
        shift = np.array(found.interval) - np.quantile(found.means, (0.025, 0.975))
        assert (sign * shift > 0).all()


def test_bootstrap_does_not_depend_on_the_order() -> None:
    values = np.random.default_rng(2).uniform(size=300)
    assert bootstrap_mean(values).interval == bootstrap_mean(values[::-1]).interval
    assert bootstrap_mean(values).means.shape == (RESAMPLES,)


def test_values_that_do_not_vary_give_an_interval_without_width() -> None:
    assert bootstrap_mean(np.full(9, 0.25)).interval == (0.25, 0.25)


def test_no_items_have_no_mean() -> None:
    assert estimate([], "proportion") == Estimate(None, None, None, 0)
    assert estimate([], "mean").as_json() == {"mean": None, "ci95": [None, None], "n": 0}


def test_a_proportion_with_a_value_between_is_a_mistake_of_the_task() -> None:
    with pytest.raises(ValueError, match=r"got 0\.5"):
        estimate([0.0, 0.5], "proportion")


def test_free_numbers_are_bootstrapped_even_when_they_are_0_and_1() -> None:
    assert estimate([0.0] * 9 + [1.0], "mean").low == 0.0  # Wilson's would be 0.018
    assert estimate([0.0] * 9 + [1.0], "fraction").low == pytest.approx(0.0179, abs=5e-5)
