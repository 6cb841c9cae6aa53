from __future__ import annotations

import numpy as np
import pytest

from evaluation.intervals import Floats, bootstrap_mean, wilson
from evaluation.paired import bootstrap_p, differs, holm, matched_difference_interval, mcnemar_exact, paired_test


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(5, 0, 2 / 2**5), (1, 8, 2 * (1 + 9) / 2**9), (3, 3, 1.0), (0, 0, 1.0), (0, 1, 1.0)],
)
def test_mcnemar_exact_is_the_binomial_test_by_hand(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar_exact(only_a, only_b) == pytest.approx(p)
    assert mcnemar_exact(only_b, only_a) == pytest.approx(p)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    # Agresti's approval ratings (R: mcnemar.test's example; exact2x2::mcnemar.exact prints 3.716e-05), then the SAS
    # results in statsmodels' own tests of mcnemar(exact=True).
    [
        (150, 86, 3.716e-05),
        (121, 59, 4.434e-06),
        (70, 59, 0.378688),
        (80, 59, 0.089452),
        (30, 60, 0.002060),
        (10, 30, 0.002221),
        (10, 10, 1.0),
    ],
)
def test_mcnemar_exact_gives_published_p_values(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar_exact(only_a, only_b) == pytest.approx(p, rel=3e-4)


def test_only_the_paired_test_sees_a_small_but_steady_gain() -> None:
    # Both right on 110, both wrong on 80, and wherever they differ (10 items) it is a that is right.
    a, b = [1.0] * 120 + [0.0] * 80, [1.0] * 110 + [0.0] * 90
    (_, high_b), (low_a, _) = wilson(110, 200), wilson(120, 200)
    assert low_a < high_b  # the two intervals overlap widely
    from scipy.stats import fisher_exact

    assert fisher_exact([[120, 80], [110, 90]]).pvalue > 0.3
    found = paired_test(a, b, proportion=True)
    assert (found.n, found.only_a, found.only_b, found.test) == (200, 10, 0, "mcnemar_exact")
    assert found.p == pytest.approx(2 / 2**10)
    assert found.difference == pytest.approx(0.05)
    assert 0 < found.low < 0.05 < found.high


def test_matched_difference_interval_on_a_textbook_table() -> None:
    # Agresti, Categorical Data Analysis (2002), table 10.1: 150 and 86 of 1,600 changed their mind; Wald 0.02 to 0.06.
    assert matched_difference_interval(150, 86, 1600) == pytest.approx((0.0212, 0.0588), abs=3e-4)


def test_the_interval_has_a_width_when_the_models_never_disagree() -> None:
    low, high = matched_difference_interval(0, 0, 50)
    assert low == pytest.approx(-high)
    assert 0.02 < high < 0.1


def test_paired_bootstrap_on_fractions() -> None:
    rng = np.random.default_rng(3)
    b = rng.uniform(0, 0.8, size=150)
    found = paired_test(b + 0.1 + rng.normal(0, 0.05, size=150), b, proportion=False)
    assert found.test == "paired_bootstrap"
    assert found.difference == pytest.approx(0.1, abs=0.02)
    assert found.low < found.difference < found.high
    assert found.p < 0.001


def test_paired_bootstrap_sees_nothing_in_noise() -> None:
    noise = np.random.default_rng(4).normal(0, 0.1, size=200)
    assert _p(noise - noise.mean()) > 0.8
    assert _p(np.zeros(5)) == 1.0


def test_few_items_are_never_certain() -> None:
    assert _p(np.array([0.3])) == 1.0
    assert _p(np.array([0.3, 0.2, 0.4])) == 0.25  # three signs, two-sided


def _p(differences: Floats) -> float:
    return bootstrap_p(differences, bootstrap_mean(differences))


def test_the_paired_bootstrap_agrees_with_the_sign_flip_permutation_test() -> None:
    from scipy.stats import permutation_test

    rng = np.random.default_rng(5)
    b = rng.uniform(0, 0.8, size=120)
    a = b + rng.normal(0.012, 0.1, size=120)
    exact = permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", rng=6).pvalue
    assert 0.01 < exact < 0.2
    assert paired_test(a, b, proportion=False).p == pytest.approx(exact, abs=0.02)


def test_holm_on_the_p_values_of_benjamini_and_hochberg() -> None:
    # Their 15 comparisons (JRSS B 57, 1995, section 4): control of the familywise error leaves three. The adjusted
    # values are those of statsmodels' multipletests(method="holm") and R's p.adjust.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528]
    adjusted = holm([*p, 0.7590, 1.0000])
    assert adjusted[:6] == pytest.approx([0.0015, 0.0056, 0.0247, 0.1140, 0.2211, 0.2780])
    assert sum(differs(value) for value in adjusted) == 3


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_the_level_is_five_percent() -> None:
    assert differs(0.049)
    assert not differs(0.051)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 0.0])])
def test_columns_that_do_not_pair_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="equally long"):
        paired_test(a, b, proportion=True)
