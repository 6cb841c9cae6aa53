"""my_task keeps the contract of a task, judges the answers of its fixture as expected,
and changes its prompt, training text or scorer only together with its version."""

from __future__ import annotations

from pathlib import Path

import tasks
from tasks.base import SPLITS
from tasks.contract import check_task
from tasks.sources import load
from tasks.versions import check_answer, check_version, read_fixture

FOLDER = Path(__file__).parent
TASK = tasks.get(f"{FOLDER / 'my_task.py'}:TASK")
FIXTURE = read_fixture(TASK, FOLDER / "my_task.json")


def test_the_bundled_rows_keep_the_contract() -> None:
    for split in SPLITS:
        check_task(TASK, load(TASK, split, "bundled"))


def test_the_rows_of_the_fixture_keep_the_contract() -> None:
    check_task(TASK, FIXTURE.records)


def test_answers_are_judged_as_expected() -> None:
    for answer in FIXTURE.answers:
        check_answer(TASK, answer)


def test_every_error_has_an_answer() -> None:
    assert {answer.error for answer in FIXTURE.answers} == {*TASK.errors, None}


def test_prompt_and_scorer_change_only_with_the_version() -> None:
    check_version(TASK, FIXTURE)
