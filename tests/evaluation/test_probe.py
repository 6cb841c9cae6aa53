"""The probe's two answers, on scores whose truth is known."""

from __future__ import annotations

import pytest

from evaluation.predictions import Prediction, Predictions
from evaluation.probe import judge
from evaluation.score import score


@pytest.fixture
def curve(fake_task, many):
    """curve({shots: number of right answers}): scores of the same records."""

    def build(right):
        return [(shots, score(fake_task, many, answers(fake_task, many, count))) for shots, count in right.items()]

    return build


def answers(task, records, right):
    texts = [task.reference(record) if i < right else "no" for i, record in enumerate(records)]
    by_id = {r.id: Prediction(id=r.id, completion=text) for r, text in zip(records, texts, strict=True)}
    return Predictions(name="made", by_id=by_id)


def test_examples_that_help_are_found_with_the_smallest_number_that_helps_most(fake_task, curve):
    verdict = judge(fake_task, curve({0: 10, 1: 40, 4: 60, 8: 60}), None)
    assert verdict.shots_help
    assert verdict.best == 4
    assert verdict.help is not None
    assert verdict.help.only_a == 50
    assert "likely helps more" in verdict.advice[1]


def test_a_difference_that_chance_explains_is_no_help(fake_task, curve):
    verdict = judge(fake_task, curve({0: 10, 1: 11, 2: 12}), None)
    assert not verdict.shots_help
    assert verdict.met_concept, "it is right now and then"


def test_a_base_that_never_answers_but_recognises_the_answer_has_met_the_concept(fake_task, curve, many):
    knows = judge(fake_task, curve({0: 0, 8: 0}), [i % 10 > 0 for i in range(len(many))])
    guesses = judge(fake_task, curve({0: 0, 8: 0}), [i % 2 > 0 for i in range(len(many))])
    assert knows.met_concept
    assert not guesses.met_concept
    assert "wrong tool" in guesses.advice[0]


def test_a_base_near_the_ceiling_is_told_to_expect_little(fake_task, curve, many):
    verdict = judge(fake_task, curve({0: 20, 8: len(many)}), None)
    assert "save tokens" in verdict.advice[-1]


def test_the_json_has_the_curve_with_intervals(fake_task, curve):
    told = judge(fake_task, curve({0: 10, 2: 60}), [True, False]).as_json()
    assert [point["shots"] for point in told["curve"]] == [0, 2]
    assert told["curve"][1][told["metric"]]["mean"] == 0.5
    assert told["recognition"]["n"] == 2
