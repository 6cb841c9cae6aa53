"""How sure a mean is: 95 % intervals for one model's metric.

Called by score for every metric. Proportions get Wilson's score interval (Wilson 1927; it keeps inside [0, 1] and has
a width at 0 % and 100 %, where the textbook interval has none). Fractions and free numbers get a bootstrap of the mean
with a fixed seed, so the same scores always print the same interval. Both are scipy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
RESAMPLES = 5_000
SEED = 20_230_811
BCA_UP_TO = 1_000  # items; with more, the correction is below what a table shows and its jackknife takes n * n steps
_BATCH = 100  # resamples held in memory at a time

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """The 95 % interval of a mean and the resampled means it comes from, (RESAMPLES,)."""

    interval: tuple[float, float]
    means: Floats


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, its 95 % interval and the number of items behind it; None everywhere when there is no item."""

    mean: float | None
    low: float | None
    high: float | None
    n: int

    def as_json(self) -> dict[str, object]:
        """The contract's form: {"mean", "ci95": [lo, hi], "n"}."""
        return {"mean": self.mean, "ci95": [self.low, self.high], "n": self.n}


def estimate(values: Sequence[float] | Floats, kind: Literal["proportion", "fraction", "mean"]) -> Estimate:
    """Mean and 95 % interval of per-item values.

    Values that are all 0 or 1 are a proportion whatever `kind` says, except for "mean": bootstrapping a column of
    ones would claim certainty. Raises ValueError for a "proportion" with a value between.
    """
    column = np.asarray(values, dtype=np.float64)  # (n,)
    if column.size == 0:
        return Estimate(None, None, None, 0)
    binary = bool(np.isin(column, (0.0, 1.0)).all())
    if kind == "proportion" and not binary:
        raise ValueError(f"a proportion takes 0 and 1 per item, got {column[~np.isin(column, (0.0, 1.0))][0]}")
    if binary and kind != "mean":
        low, high = wilson(int(column.sum()), column.size)
    else:
        low, high = bootstrap_mean(column).interval
    return Estimate(float(column.mean()), low, high, int(column.size))


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval (95 % unless told), without continuity correction, for `successes` of `n`."""
    from scipy.stats import binomtest  # a second to import: only where it is used

    interval = binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_mean(values: Floats) -> Bootstrap:
    """Bootstrap of the mean of `values` (n,); the same for the same values in any order.

    BCa intervals (bias-corrected and accelerated: Efron 1987), which lean as far as the values do; percentile
    intervals above BCA_UP_TO items, where the two agree.
    """
    from scipy.stats import bootstrap

    ordered = np.sort(values)  # (n,)
    if ordered[0] == ordered[-1]:  # nothing varies: every resample has the same mean, and BCa would divide by zero
        only = float(ordered[0])
        return Bootstrap((only, only), np.full(RESAMPLES, only))
    found = bootstrap(
        (ordered,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        confidence_level=CONFIDENCE,
        method="BCa" if len(ordered) <= BCA_UP_TO else "percentile",
        rng=np.random.default_rng(SEED),
    )
    low, high = found.confidence_interval
    return Bootstrap((float(low), float(high)), found.bootstrap_distribution)
