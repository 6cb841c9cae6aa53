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

    The squares are of the grades themselves, not of their places in the table: unused grades between two count. None
    where all grades are equal.
    """
    from statsmodels.stats.inter_rater import cohens_kappa

    grades, places = np.unique(np.concatenate([a, b]), return_inverse=True)
    if len(grades) < 2:
        return None
    table = np.zeros((len(grades), len(grades)))
    np.add.at(table, (places[: len(a)], places[len(a) :]), 1)
    return float(cohens_kappa(table, weights=(grades[:, None] - grades) ** 2, return_results=False))
