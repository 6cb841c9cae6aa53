"""The bundled GSM8K records: the same everywhere, correctly solved, disjoint and of the form of the real ones."""

from __future__ import annotations

import collections
import hashlib
import json
import re
import time
from fractions import Fraction

import pytest

from tasks import gsm8k_bundled
from tasks.base import SPLITS, Completion
from tasks.gsm8k import TASK
from tasks.gsm8k_answer import gold_number
from tasks.gsm8k_bundled import generate
from tasks.sources import load

FLOOR = {"train": 2000, "valid": 200, "test": 200}
PINNED = {
    "train": "bf6eab844b934a05",
    "valid": "f928dcc14e080210",
    "test": "a8eacb083f1fdc63",
}

_STEP = re.compile(r"(\d+)([-+*/])(\d+) = <<([^<>=]+)=(-?\d+)>>(-?\d+)")


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_the_same_on_every_machine(split: str) -> None:
    digest = hashlib.sha256(json.dumps(generate(split)).encode()).hexdigest()
    assert digest[:16] == PINNED[split]


@pytest.mark.parametrize("split", SPLITS)
def test_there_are_enough_rows(split: str) -> None:
    assert len(generate(split)) >= FLOOR[split]


def test_splits_share_no_question_and_no_solution() -> None:
    for column in ("question", "answer"):
        texts = [row[column] for split in SPLITS for row in generate(split)]
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("split", SPLITS)
def test_every_step_is_calculated_correctly_and_the_last_one_is_the_answer(split: str) -> None:
    for row in generate(split):
        steps = _STEP.findall(row["answer"])
        assert len(steps) == row["answer"].count("<<") >= 2
        for left, sign, right, annotation, result, written in steps:
            numbers = int(left), int(right)
            values = {"+": sum(numbers), "-": numbers[0] - numbers[1], "*": numbers[0] * numbers[1]}
            assert annotation == f"{left}{sign}{right}"
            assert int(result) == int(written) == values.get(sign, Fraction(numbers[0], numbers[1]))
        assert gold_number(row["answer"]) == int(steps[-1][-1])


@pytest.mark.parametrize("split", SPLITS)
def test_numbers_of_the_question_decide_the_answer(split: str) -> None:
    """No step invents a number, except the factors that the words stand for (half, there and back, per cent)."""
    for row in generate(split):
        known = set(re.findall(r"\d+", row["question"])) | {"2", "100"}
        for left, _, right, _, result, _ in _STEP.findall(row["answer"]):
            assert {left, right} <= known, row
            known.add(result.removeprefix("-"))


@pytest.mark.parametrize("split", SPLITS)
def test_results_are_varied(split: str) -> None:
    results = [row["answer"].rpartition("#### ")[2] for row in generate(split)]
    assert any(result.startswith("-") for result in results)
    assert any("," in result for result in results)
    assert collections.Counter(results).most_common(1)[0][1] < 0.05 * len(results)


@pytest.mark.parametrize("split", SPLITS)
def test_gold_is_perfect(split: str) -> None:
    perfect = {name: float(name != "format_violation") for name in TASK.metric_names}
    for record in load(TASK, split, "bundled"):
        score = TASK.score(record, Completion(TASK.reference(record)))
        assert (score.metrics, score.error) == (perfect, None), record


def test_generation_is_quick() -> None:
    start = time.process_time()
    assert len(gsm8k_bundled._all_splits.__wrapped__()) == len(SPLITS)
    assert time.process_time() - start < 2
