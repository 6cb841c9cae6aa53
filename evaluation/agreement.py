"""How far a judge agrees with itself (or with another): shares, differences, and Cohen's weighted kappa.

Used by `judge` when every answer is graded several times. Grades are numbers on one scale; agreement is taken over all
pairs of gradings of the same item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Agreement:
    """Over `pairs` pairs of grades of `items` items.

    Attributes:
        exact: share of pairs that are equal.
        mean_difference: mean absolute difference, in grades.
        kappa: quadratic-weighted, over both orders of every pair; None where all grades are equal, which leaves chance
            nothing to explain.
    """

    items: int
    pairs: int
    exact: float
    mean_difference: float
    kappa: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def agreement(rows: Sequence[Sequence[float]]) -> Agreement | None:
    """Agreement of repeated gradings.

    Args:
        rows: the grades of each item, failed gradings left out; items with fewer than two say nothing.
    """
    graded = [row for row in rows if len(row) > 1]
    pairs = [pair for row in graded for pair in combinations(row, 2)]
    if not pairs:
        return None
    a, b = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))  # (pairs,) each
    both = np.concatenate([a, b]), np.concatenate([b, a])  # which of two gradings came first means nothing
    return Agreement(
        items=len(graded),
        pairs=len(pairs),
        exact=float((a == b).mean()),
        mean_difference=float(np.abs(a - b).mean()),
        kappa=weighted_kappa(*both),
    )


def weighted_kappa(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float | None:
    """Cohen's kappa with quadratic weights (Cohen 1968): 1 minus observed over expected squared difference.

    With squared differences no table is needed: what two raters with these grades would differ by chance is the mean
    over all pairs of one's grades and the other's. None where that is zero.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)  # (n,)
    observed = float(((x - y) ** 2).mean())
    expected = float((x**2).mean() + (y**2).mean() - 2.0 * x.mean() * y.mean())
    return 1.0 - observed / expected if expected > 0 else None
