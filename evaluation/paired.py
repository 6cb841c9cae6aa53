"""Whether one model really beats another: tests on the same items, paired item by item.

Called by compare. Two models that answer the same questions are right and wrong on mostly the same ones; a test that
ignores the pairing throws that away and misses differences that are there. Proportions get McNemar's exact test
(McNemar 1947: a binomial test on the items where exactly one model is right), fractions and free numbers a paired
bootstrap of the mean difference (Efron and Tibshirani 1993, ch. 16). Holm's step-down method (Holm 1979) keeps the
chance of any false alarm at the stated level when several pairs are tested. `evaluation.power` says what such a test
can see at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np

from evaluation.intervals import CONFIDENCE, RESAMPLES, Bootstrap, Floats, bootstrap_mean

Z = 1.959963984540054  # standard normal quantile for a two-sided 95 % interval


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Model `a` against model `b` on the items that both have.

    Attributes:
        n: number of pairs.
        difference: mean of a minus mean of b.
        low, high: 95 % interval of the difference.
        only_a, only_b: items on which a (or b) has the higher value.
        test: which test gave `p`.
        p: two-sided p-value, before correction for several comparisons.
    """

    n: int
    difference: float
    low: float
    high: float
    only_a: int
    only_b: int
    test: Literal["mcnemar_exact", "paired_bootstrap"]
    p: float


def paired_test(a: Sequence[float] | Floats, b: Sequence[float] | Floats, *, proportion: bool) -> PairedTest:
    """Test whether two models differ on the same items.

    Args:
        a, b: per-item values, one pair per position. (n,), n > 0.
        proportion: values are 0 or 1: McNemar's exact test; else the paired bootstrap.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"paired tests take two equally long columns with at least one item, got {len(a)}, {len(b)}")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)  # (n,)
    only_a, only_b = int((differences > 0).sum()), int((differences < 0).sum())
    if proportion:
        p = mcnemar_exact(only_a, only_b)
        low, high = matched_difference_interval(only_a, only_b, len(differences))
    else:
        resampled = bootstrap_mean(differences)
        p = bootstrap_p(differences, resampled)
        low, high = resampled.interval
    return PairedTest(
        n=len(differences),
        difference=float(differences.mean()),
        low=low,
        high=high,
        only_a=only_a,
        only_b=only_b,
        test="mcnemar_exact" if proportion else "paired_bootstrap",
        p=p,
    )


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value for `only_a` against `only_b` discordant pairs; 1.0 when there are none."""
    from scipy.stats import binomtest

    discordant = only_a + only_b
    return float(binomtest(only_a, discordant, 0.5).pvalue) if discordant else 1.0


def matched_difference_interval(only_a: int, only_b: int, n: int) -> tuple[float, float]:
    """95 % interval of a difference of two paired proportions: Wald after adding 1/2 to each cell.

    Agresti and Min (2005), "Simple improved confidence intervals for comparing matched proportions". Unlike the plain
    Wald interval it keeps a width when the models never disagree.
    """
    a, b, total = only_a + 0.5, only_b + 0.5, n + 2.0
    centre = (a - b) / total
    half = Z * sqrt((a + b) - (a - b) ** 2 / total) / total
    return max(-1.0, centre - half), min(1.0, centre + half)


def bootstrap_p(differences: Floats, resampled: Bootstrap) -> float:
    """Two-sided paired-bootstrap p-value: how often a resample's mean difference falls on the other side of 0.

    Never below what the sign test could give on so few non-zero differences: a handful of items that all point one
    way would otherwise look certain.
    """
    nonzero = int(np.count_nonzero(differences))
    if nonzero == 0:
        return 1.0
    crossed = min(int((resampled.means <= 0).sum()), int((resampled.means >= 0).sum()))
    return float(min(1.0, max(2.0 * (crossed + 1) / (RESAMPLES + 1), 2.0 ** (1 - nonzero))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values in the order given: compare each with the level itself."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def differs(p_adjusted: float) -> bool:
    """Whether an adjusted p-value speaks against chance at the level that the intervals use."""
    return p_adjusted < 1.0 - CONFIDENCE
