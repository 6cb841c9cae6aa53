from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tasks
from evaluation.facts import MOST_LABELS, Lengths, facts_of
from tasks.base import Record, Task
from tasks.sources import Loaded, LoadReport, load_with_report


def loaded(*words: str, rejected: tuple[str, ...] = ()) -> Loaded:
    records = [Record(f"backwards-train-{i}", {"word": word}) for i, word in enumerate(words)]
    return Loaded(records, LoadReport("here", len(words) + len(rejected), rejected))


def test_the_facts_by_hand(fake_task: Task) -> None:
    found = facts_of(fake_task, loaded("abc", "de fg", "abc", "abc", rejected=("x",)))
    assert (found.origin, found.rows, found.rejected) == ("here", 4, ("x",))
    assert (found.duplicates, found.contradictions, found.labels) == (2, 0, None)
    assert found.lengths["question, characters"] == Lengths(3, 3, 5, 5, 5)
    assert found.lengths["answer, words"] == Lengths(1, 1, 2, 2, 2)
    assert found.as_json()["lengths"]["question, words"]["largest"] == 2


def test_a_question_with_two_answers_is_a_contradiction(fake_task: Task) -> None:
    answers = iter(["a", "a", "b", "b"])
    task = replace(fake_task, reference=lambda record: next(answers))
    found = facts_of(task, loaded("q", "q", "q", "q"))
    assert (found.duplicates, found.contradictions) == (3, 1)


def test_labels_come_by_frequency_and_the_rest_in_one(fake_task: Task) -> None:
    task = replace(fake_task, label=lambda record: str(record["word"]))
    words = [f"w{i}" for i in range(MOST_LABELS + 4)]
    labels = facts_of(task, loaded(*words, "w3", "w3", "w5")).labels
    assert labels is not None
    assert list(labels.items())[:2] == [("w3", 3), ("w5", 2)]
    assert list(labels.items())[-1] == ("4 others", 4)
    assert sum(labels.values()) == len(words) + 3


def test_rows_that_hold_a_special_token_are_named(fake_task: Task) -> None:
    assert facts_of(fake_task, loaded("abc", "x<A>", "<Q")).marked == ("backwards-train-1",)


def test_a_split_without_rows_has_no_lengths(fake_task: Task) -> None:
    assert facts_of(fake_task, loaded()).lengths == {}


def test_real_viggo(real_data: Path) -> None:
    viggo = tasks.get("viggo")
    found = facts_of(viggo, load_with_report(viggo, "train", str(real_data / "viggo")))
    assert (found.rows, found.duplicates, found.contradictions) == (5103, 7, 0)
    assert found.labels is not None
    assert len(found.labels) == 9
    assert found.labels["inform"] == 2379
