"""How sure a mean is: 95 % intervals for one model's metric.

Called by score for every metric. Proportions get Wilson's score interval (Wilson 1927; it keeps inside [0, 1] and has
a width at 0 % and 100 %, where the textbook interval has none). Fractions and free numbers get a percentile bootstrap
of the mean (Efron 1979) with a fixed seed, so the same scores always print the same interval.
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
_CELLS = 4_000_000  # of one block of resampling: about 32 MB
_FEW_VALUES = 64

Floats = npt.NDArray[np.float64]


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
    low, high = wilson(int(column.sum()), column.size) if binary and kind != "mean" else bootstrap_mean(column)
    return Estimate(float(column.mean()), low, high, int(column.size))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval, without continuity correction, for `successes` of `n`."""
    from scipy.stats import binomtest  # a second to import: only where it is used

    interval = binomtest(successes, n).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_mean(values: Floats) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval of the mean of `values` (n,)."""
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(resampled_means(values), (tail, 1.0 - tail))
    return float(low), float(high)


def resampled_means(values: Floats) -> Floats:
    """Means of RESAMPLES resamples with replacement, (RESAMPLES,); the same for the same values in any order.

    A resample's mean depends only on how often each distinct value was drawn, and those counts are multinomial: where
    values repeat, as they do in most metrics, drawing counts is far cheaper than drawing n places.
    """
    distinct, counts = np.unique(values, return_counts=True)  # (k,), (k,)
    ordered = np.sort(values)  # (n,)
    n, rng = len(ordered), np.random.default_rng(SEED)
    few = len(distinct) <= _FEW_VALUES
    rows = max(1, _CELLS // (len(distinct) if few else n))
    blocks: list[Floats] = []
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        if few:
            blocks.append(rng.multinomial(n, counts / n, size=size) @ distinct / n)
        else:
            blocks.append(ordered[rng.integers(0, n, size=(size, n))].mean(axis=1))
    return np.concatenate(blocks)
