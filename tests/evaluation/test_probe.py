"""The probe's two answers, on scores whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evaluation.predictions import Prediction, Predictions
from evaluation.probe import Choice, judge
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
    verdict = judge(fake_task, curve({0: 20, 1: 21, 2: 22}), None)
    assert not verdict.shots_help
    assert verdict.met_concept, "it is right more often than guessing would be"


@pytest.mark.parametrize(("right", "met"), [(0, False), (1, False), (6, False), (12, False), (24, True)])
def test_a_few_right_answers_in_the_best_of_five_settings_show_nothing(fake_task, curve, right, met):
    verdict = judge(fake_task, curve({0: 0, 1: 0, 2: 0, 4: right, 8: 0}), None)
    assert verdict.met_concept is met
    assert (verdict.looks, verdict.confidence) == (5, pytest.approx(0.99))
    assert "corrected for every look" in verdict.evidence[0]
    assert "more than 5%" in verdict.evidence[0]
    assert ("Nothing shows" in verdict.advice[0]) is not met


def test_each_look_asks_for_more_than_a_single_one_would(fake_task, curve):
    assert judge(fake_task, curve({0: 12}), None).met_concept
    assert not judge(fake_task, curve({0: 12, 1: 0, 2: 0, 4: 0, 8: 0}), None).met_concept


def test_a_base_that_never_answers_but_recognises_the_answer_has_met_the_concept(fake_task, curve, many):
    none = curve({0: 0, 8: 0})
    knows = judge(fake_task, none, [Choice(right=i % 10 > 0, copying=False) for i in range(len(many))])
    guesses = judge(fake_task, none, [Choice(right=i % 2 > 0, copying=False) for i in range(len(many))])
    assert knows.met_concept
    assert "cannot show that the base would find the answer by itself" in knows.evidence[-1]
    assert not guesses.met_concept
    assert "wrong tool" in guesses.advice[0]


def test_recognition_that_copying_explains_is_told_and_does_not_count(fake_task, curve, many):
    none = curve({0: 0, 8: 0})
    copies = judge(fake_task, none, [Choice(right=True, copying=True) for _ in many])
    assert not copies.met_concept
    assert copies.recognition.mean == 1.0
    assert copies.beyond_copying.n == 0
    assert "No record is left" in copies.evidence[-1]
    mixed = judge(fake_task, none, [Choice(right=i < 100, copying=i < 100) for i in range(len(many))])
    assert not mixed.met_concept, "right only where copying is enough"
    assert mixed.beyond_copying.mean == 0.0


def test_a_metric_that_some_answers_do_not_have_is_tested_where_both_have_it(fake_task, curve, many):
    polite = replace(fake_task, metrics=tuple(replace(m, headline=m.name == "politeness") for m in fake_task.metrics))
    texts = {record.id: "please" if place < 60 else "" for place, record in enumerate(many)}
    half = Predictions(name="half", by_id={name: Prediction(id=name, completion=text) for name, text in texts.items()})
    verdict = judge(polite, [*curve({0: 40}), (2, score(fake_task, many, half))], None)
    assert verdict.help.n == 60
    nothing = score(fake_task, many[60:], half)
    verdict = judge(polite, [(0, nothing), (2, nothing)], None)
    assert (verdict.help, verdict.met_concept, verdict.curve[0].score.mean) == (None, False, None)


def test_a_base_near_the_ceiling_is_told_to_expect_little(fake_task, curve, many):
    verdict = judge(fake_task, curve({0: 20, 8: len(many)}), None)
    assert "save tokens" in verdict.advice[-1]


def test_the_json_has_the_curve_with_intervals(fake_task, curve):
    told = judge(fake_task, curve({0: 10, 2: 60}), [Choice(True, False), Choice(False, True)]).as_json()
    assert [point["shots"] for point in told["curve"]] == [0, 2]
    assert told["curve"][1][told["metric"]]["mean"] == 0.5
    assert told["recognition"]["n"] == 2
    assert told["recognition_beyond_copying"]["n"] == 1
    assert len(told["evidence"]) == 3
