from __future__ import annotations

import pytest

from evaluation.economy import Usage, break_even, economy, usage
from evaluation.predictions import Prediction


def _answers(**extra: float) -> list[Prediction]:
    return [Prediction(str(i), "x", prompt_tokens=10, completion_tokens=i, extra=extra) for i in range(4)]


def test_what_was_not_recorded_is_not_measured() -> None:
    assert usage({}, [Prediction("a", "x")], 2.0) == Usage()
    assert usage({"seconds": 8.0}, [], 2.0) == Usage()


def test_averages_of_what_was_recorded() -> None:
    found = usage({"seconds": 8.0}, _answers(latency_s=0.5), None)
    assert (found.prompt_tokens, found.completion_tokens, found.seconds_per_answer) == (10.0, 1.5, 2.0)
    assert (found.latency_s, found.latency_p95_s, found.cost_per_1000_usd) == (0.5, 0.5, None)


@pytest.mark.parametrize(
    ("details", "extra", "price", "cost", "basis"),
    [
        ({}, {"cost_usd": 0.002}, None, 2.0, "ledger"),
        ({"answers_cost_usd": 0.4}, {}, None, 100.0, "ledger"),
        ({"seconds": 36.0, "workers": 2}, {}, 1.5, 7.5, "worker hours"),
        ({"seconds": 36.0}, {}, 1.5, None, None),  # on how many workers is not known
        ({"seconds": 36.0, "workers": 2}, {}, None, None, None),
    ],
)
def test_the_cost_of_a_thousand_answers_is_the_ledger_s_else_the_workers(
    details: dict[str, float], extra: dict[str, float], price: float | None, cost: float | None, basis: str | None
) -> None:
    found = usage(details, _answers(**extra), price)
    assert found.cost_per_1000_usd == (None if cost is None else pytest.approx(cost))
    assert found.cost_basis == basis


def test_totals_of_a_file_are_shared_by_all_its_answers_and_not_by_the_scored_ones_only() -> None:
    few = _answers()
    timed = usage({"seconds": 36.0, "workers": 2}, few, 1.5, predicted=40)
    assert (timed.seconds_per_answer, timed.cost_per_1000_usd) == (0.9, pytest.approx(0.75))
    assert usage({"answers_cost_usd": 0.4}, few, None, predicted=40).cost_per_1000_usd == pytest.approx(10.0)
    assert usage({}, _answers(cost_usd=0.002), None, predicted=40).cost_per_1000_usd == pytest.approx(2.0)


def test_break_even_is_the_first_answer_at_which_tuning_is_the_cheaper_way() -> None:
    found = break_even("gpt", 4.0, tuning_usd=3.0, tuned_usd=1.0)
    assert found.answers == 1000
    assert 3.0 + found.answers * 0.001 <= found.answers * 0.004
    assert 3.0 + (found.answers - 1) * 0.001 > (found.answers - 1) * 0.004


@pytest.mark.parametrize(
    ("tuning", "tuned", "why"),
    [(None, 1.0, "unknown"), (3.0, None, "unknown"), (3.0, 4.0, "never"), (3.0, 9.0, "never")],
)
def test_break_even_says_why_there_is_none(tuning: float | None, tuned: float | None, why: str) -> None:
    found = break_even("gpt", 4.0, tuning_usd=tuning, tuned_usd=tuned)
    assert found.answers is None
    assert found.why.startswith(why)


def test_tuning_costs_its_hours_and_pays_against_every_row_with_a_ledger() -> None:
    mine = Usage(cost_per_1000_usd=1.0, cost_basis="worker hours")
    others = {"gpt": Usage(cost_per_1000_usd=4.0, cost_basis="ledger"), "base": mine}
    found = economy({"worker_hours": 1.5}, mine, others, 2.0)
    assert found.tuning_usd == 3.0
    assert [(row.api, row.answers) for row in found.break_even] == [("gpt", 1000)]
    assert economy({}, mine, others, 2.0).tuning_usd is None
