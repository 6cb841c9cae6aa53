from __future__ import annotations

from math import comb

import numpy as np
import pytest

from evaluation.paired import differs, mcnemar_exact, paired_test
from evaluation.power import POWER, detectable_mean, detectable_proportion, mcnemar_power


def test_power_of_the_published_example() -> None:
    # R package MESS, validated result of power_mcnemar_test: 144 pairs, 0.25 and 0.45, exact, 2.5 % per tail.
    assert mcnemar_power(144, 0.25 + 0.45, 0.45 - 0.25) == pytest.approx(0.80, abs=0.005)


@pytest.mark.parametrize(("discordant", "difference"), [(0.4, 0.24), (0.9, 0.5), (0.3, 0.0)])
def test_power_is_the_sum_over_every_table(discordant: float, difference: float) -> None:
    n, up, down = 25, (discordant + difference) / 2, (discordant - difference) / 2
    tables = [(a, b) for a in range(n + 1) for b in range(n + 1 - a)]
    found = sum(
        comb(n, a) * comb(n - a, b) * up**a * down**b * (1 - discordant) ** (n - a - b)
        for a, b in tables
        if differs(mcnemar_exact(a, b))
    )
    assert mcnemar_power(n, discordant, difference) == pytest.approx(found, abs=1e-9)


def test_the_minimum_detectable_difference_has_the_stated_power() -> None:
    for n, discordant in ((60, 0.4), (200, 0.2), (1_000, 0.1), (10_000, 0.3)):
        found = detectable_proportion(n, discordant).difference
        assert found is not None
        assert mcnemar_power(n, discordant, found) == pytest.approx(POWER, abs=1e-3)


def test_more_items_see_smaller_differences_and_too_few_see_none() -> None:
    found = [detectable_proportion(n, 0.2).difference for n in (50, 200, 1_000)]
    assert found == sorted((value for value in found if value), reverse=True)
    assert detectable_proportion(20, 0.1).difference is None
    assert detectable_proportion(20, 0.0).difference is None


def test_the_detectable_mean_is_found_four_times_out_of_five() -> None:
    rng = np.random.default_rng(8)
    size = detectable_mean(80, 0.3).difference
    assert size is not None
    draws = rng.normal(size, 0.3, size=(100, 80))
    hits = [paired_test(draw, np.zeros(80), proportion=False).p < 0.05 for draw in draws]
    assert np.mean(hits) == pytest.approx(POWER, abs=0.1)
    assert detectable_mean(80, 0.0).difference is None
