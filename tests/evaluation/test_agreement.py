from __future__ import annotations

import numpy as np
import pytest

from evaluation.agreement import agreement, weighted_kappa


def test_quadratic_kappa_is_the_published_value() -> None:
    """Artstein and Poesio 2008, table 4 (counts 46/44/10 against 50/40/10), as scikit-learn's tests hold it: 0.9541."""
    a = [0] * 46 + [1] * 44 + [2] * 10
    b = [0] * 50 + [1] * 40 + [2] * 10
    assert weighted_kappa(a, b) == pytest.approx(0.9541, abs=5e-5)


def test_on_two_grades_it_is_cohens_kappa() -> None:
    """Cohen 1960's plain kappa of a 2 x 2 table (20, 5, 10, 15): observed 0.7, expected 0.5, kappa 0.4."""
    table = {(1, 1): 20, (1, 0): 5, (0, 1): 10, (0, 0): 15}
    a, b = zip(*[pair for pair, count in table.items() for _ in range(count)], strict=True)
    assert weighted_kappa(a, b) == pytest.approx(0.4)


def test_the_definition_by_tables_gives_the_same() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.integers(1, 6, 200), rng.integers(1, 6, 200)
    weights = (np.arange(5)[:, None] - np.arange(5)) ** 2
    observed = np.zeros((5, 5))
    np.add.at(observed, (a - 1, b - 1), 1)
    expected = np.outer(observed.sum(1), observed.sum(0)) / 200
    assert weighted_kappa(a, b) == pytest.approx(1 - (weights * observed).sum() / (weights * expected).sum())


def test_a_grade_that_nobody_gave_leaves_its_gap() -> None:
    """Squared differences of 1, 2 and 5: observed (1 + 9) / 4, expected over all 16 pairs by hand."""
    a, b = [1.0, 2.0, 5.0, 5.0], [1.0, 1.0, 5.0, 2.0]
    expected = sum((x - y) ** 2 for x in a for y in b) / 16
    assert weighted_kappa(a, b) == pytest.approx(1 - (10 / 4) / expected)


def test_figures_by_hand() -> None:
    found = agreement([[4, 5], [2, 2], [3], [], [1, 1, 2]])
    assert found is not None
    assert (found.items, found.pairs) == (3, 5)
    assert found.exact == pytest.approx(2 / 5)
    assert found.mean_difference == pytest.approx(3 / 5)


def test_nothing_to_compare_and_nothing_to_explain() -> None:
    assert agreement([]) is None
    assert agreement([[4], [], [5]]) is None
    same = agreement([[4, 4], [4, 4]])
    assert same is not None
    assert (same.exact, same.kappa) == (1.0, None)
    assert weighted_kappa([1, 2, 3], [1, 2, 3]) == 1.0


def test_the_order_of_gradings_does_not_matter() -> None:
    rows = [[1, 2], [3, 5], [4, 4], [2, 5]]
    first, second = agreement(rows), agreement([row[::-1] for row in rows])
    assert first is not None
    assert second is not None
    assert first.kappa == pytest.approx(second.kappa)
