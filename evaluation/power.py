"""What a test on so many items can see: power of the paired tests and the minimum detectable difference.

Called by compare. "No clear difference" means little without it: a test on 50 items misses most gains that matter.
Exact for McNemar's test, by adding up over how many discordant pairs there may be (Duffy 1984); normal approximation
for means. Both at the 5 % level, two-sided, before correction for several comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np
import numpy.typing as npt

from evaluation.intervals import CONFIDENCE, Floats

POWER = 0.80
ALPHA = 1.0 - CONFIDENCE
_Z = 1.959963984540054 + 0.8416212335729143  # standard normal quantiles at 97.5 % and at POWER


@dataclass(frozen=True, slots=True)
class Detectable:
    """The smallest true difference that a paired test on `n` items finds with probability POWER.

    Attributes:
        n: number of pairs.
        discordant: share of items on which exactly one model is right; None for metrics that are not 0/1.
        difference: as a difference of means; None where even one-sided disagreement would be missed.
    """

    n: int
    discordant: float | None
    difference: float | None


@dataclass(frozen=True, slots=True)
class _Design:
    """The exact McNemar test on `n` pairs of which a share `discordant` is expected to be discordant.

    Attributes:
        counts: how many discordant pairs may turn up, (c,), with their `weights`.
        critical: up to how many wins of the loser the test still rejects at that count; -1: never.
    """

    discordant: float
    counts: npt.NDArray[np.int64]
    weights: Floats
    critical: Floats

    @staticmethod
    def of(n: int, discordant: float) -> _Design:
        from scipy.stats import binom

        spread = 10.0 * sqrt(n * discordant * (1.0 - discordant)) + 10.0  # a count beyond is less likely than 1e-20
        low, high = max(0, int(n * discordant - spread)), min(n, int(n * discordant + spread))
        counts = np.arange(low, high + 1)  # (c,)
        first = binom.ppf(ALPHA / 2, counts, 0.5)  # the first with cdf >= alpha/2
        critical = np.where(binom.cdf(first, counts, 0.5) <= ALPHA / 2, first, first - 1)
        return _Design(discordant, counts, binom.pmf(counts, n, discordant), critical)

    def power(self, difference: float) -> float:
        from scipy.special import bdtr  # the binomial distribution function, without the checks of binom.cdf

        loser = (1.0 - difference / self.discordant) / 2.0
        least = np.maximum(self.critical, 0.0)
        rejected = bdtr(least, self.counts, loser) + bdtr(least, self.counts, 1.0 - loser)
        return float((self.weights * np.where(self.critical >= 0.0, rejected, 0.0)).sum())


def mcnemar_power(n: int, discordant: float, difference: float) -> float:
    """Power of the exact McNemar test, alpha/2 in either tail.

    Args:
        n: pairs.
        discordant: probability that exactly one of the two models is right on an item.
        difference: of the two accuracies, at most `discordant`.
    """
    return _Design.of(n, discordant).power(difference)


@lru_cache(maxsize=4096)
def detectable_proportion(n: int, discordant: float) -> Detectable:
    """Minimum detectable difference of two accuracies when the models part on a share `discordant` of the items."""
    from scipy.optimize import brentq

    if discordant <= 0.0:
        return Detectable(n, discordant, None)
    design = _Design.of(n, discordant)
    if design.power(discordant) < POWER:
        return Detectable(n, discordant, None)
    found = brentq(lambda d: design.power(d) - POWER, 0.0, discordant, xtol=1e-5)
    return Detectable(n, discordant, float(found))


def detectable_mean(n: int, deviation: float) -> Detectable:
    """Minimum detectable mean difference when the per-item differences have that standard deviation."""
    return Detectable(n, None, _Z * deviation / sqrt(n) if deviation > 0.0 else None)
