"""Every reasonable way in which judges write a grade, and the ways that are none."""

from __future__ import annotations

import pytest

from tasks.base import Completion, Record, Rubric
from tasks.grades import parse, question

FOURS = [
    "4",
    " 4\n",
    "4.",
    "4.0",
    "４",
    "4点",
    "４点です。",
    "**4**",
    "[[4]]",
    "<score>4</score>",
    "4/5",
    "4 / 5",
    "4 out of 5",
    "4点/5点",
    "5点満点中4点",
    "5段階評価で4",
    "Score: 4/5",
    "score: 4",
    "Score: **4**",
    "**Score:** 4",
    "Final score - 4",
    "Overall rating = 4 out of 5",
    "Grade: [[4]]",
    "The score is 4.",
    "I give it a score of 4.",
    "評価：４",
    "評価: 4点",
    "点数は4点です",
    "【評価】4",
    "スコア：４／５",
    "採点結果\n評価：4\n理由：2か所の誤りがある。",
    '{"score": 4}',
    '{"score": "4"}',
    '{"score": "4/5", "reason": "clear"}',
    '{"reason": "3 facts are right, 1 wrong", "score": 4}',
    '```json\n{"score": 4.0}\n```',
    '{"評価": 4}',
    "I would rate this answer 4.",
    "On a scale of 1 to 5, I'd say 4.",
    "The answer names 3 of the 5 points.\n\nScore: 4",
    "4\n\nThe answer misses 1 of the 3 conditions.",
    "The answer has 2 slips but is sound.\n\n4",
    "Score: 3 at first sight; after weighing it, final score: 4",
    "1から5で評価すると4です",
    "Rating (1-5): 4",
    "Rating: 4\n",
    "This deserves a 4!",
    "Score: 4\nA score of 5 would need a source.",
    "Accuracy score: 5\nFluency score: 3\nOverall: 4",
    "Overall: 4\nAccuracy score: 5",
    "正確さの評価：5\n総合評価：4",
    "Grade 4",
]
NONE = [
    "",
    "no number here",
    "Score:",
    "Between 3 and 4",
    "Score: 3-4",
    "3 or 4",
    "4.5",
    "Score: 4.5",
    "0",
    "6",
    "-4",
    "14",
    "44",
    "Score: 40%",
    "80%",
    '{"score": 7}',
    '{"score": null}',
    '{"score": true}',
    "I can't help with that.",
    "The answer is good in 2 ways and bad in 3.",
    "4\nno, 3\n5",
]


@pytest.mark.parametrize("reply", FOURS)
def test_a_four_is_read(reply: str) -> None:
    assert parse(reply) == 4


@pytest.mark.parametrize("reply", NONE)
def test_what_is_no_grade_is_none(reply: str) -> None:
    assert parse(reply) is None


@pytest.mark.parametrize("grade", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "form", ["{}", "Score: {}/5", "{}点", "評価：{}", '{{"score": {}}}', "5点満点中{}点", "**{}**"]
)
def test_every_grade_in_every_form(grade: int, form: str) -> None:
    assert parse(form.format(grade)) == grade


def test_other_scales() -> None:
    assert parse("7/10", range(11)) == 7
    assert parse("Score: 0", (0, 1)) == 0
    assert parse("10", range(1, 11)) == 10


@pytest.mark.parametrize("text", ["1" * 100_000, "{" * 100_000, "score " * 50_000, "score: " + "*" * 100_000, "\ud800"])
def test_hostile_replies_end(text: str) -> None:
    assert parse(text) is None


def test_a_rubric_takes_only_its_grades_and_its_own_parser() -> None:
    def prompt(record: Record, completion: Completion) -> str:
        return completion.text

    assert Rubric("1", prompt).read("Score: 4") == 4
    assert Rubric("1", prompt, grades=(0, 1)).read("Score: 4") is None
    assert Rubric("1", prompt, parse=lambda reply: 2).read("whatever") == 2
    assert Rubric("1", prompt, parse=lambda reply: 9).read("whatever") is None


def test_a_question_has_the_parts_it_is_given() -> None:
    text = question("Grade it.", asked="Why?", answer="Because.", gold="So that.", aspect="brevity")
    places = [text.index(part) for part in ("Grade it.", "Why?", "So that.", "brevity", "Because.")]
    assert places == sorted(places)
    assert "reference_answer" not in question("Grade it.", asked="Why?", answer="Because.")
