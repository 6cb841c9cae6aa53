"""Shared pieces of the evaluation tests: the fake task, its records, and predictions with known faults."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import tasks
from evaluation.comparison import Entry
from evaluation.pool import TaskSpec
from evaluation.predictions import Prediction, Predictions, write_predictions
from evaluation.score import score, write_scores
from tasks.base import Record, Task

sys.path.append(str(Path(__file__).parent))  # for `import scripted_server`: there is no package under tests/

FAKE_TASK = f"{Path(__file__).parent / 'fake_task.py'}:TASK"


@pytest.fixture
def fake_spec() -> TaskSpec:
    return TaskSpec(FAKE_TASK)


@pytest.fixture
def fake_task() -> Task:
    return tasks.get(FAKE_TASK)


@pytest.fixture
def words() -> list[Record]:
    return [Record(f"backwards-test-{i}", {"word": word}) for i, word in enumerate(["abc", "live", "tar", "on", "xy"])]


@pytest.fixture
def many() -> list[Record]:
    return [Record(f"backwards-test-{i}", {"word": f"w{i:03d}"}) for i in range(120)]


@pytest.fixture
def entry(tmp_path: Path, fake_task: Task) -> Callable[..., Entry]:
    """Build an entry that answers `records` rightly, but for those at the places in `wrong`."""

    def build(
        label: str, records: list[Record], wrong: set[int], *, says: str = "nonsense", **details: object
    ) -> Entry:
        rows = [
            Prediction(record.id, says if place in wrong else fake_task.reference(record), completion_tokens=4)
            for place, record in enumerate(records)
        ]
        path = tmp_path / "predictions" / f"{label.replace('/', '_')[:40]}.jsonl"
        write_predictions(path, rows)
        return Entry(label, path, details=details)

    return build


@pytest.fixture
def partly(tmp_path: Path, fake_task: Task, many: list[Record]) -> Callable[..., Entry]:
    """Build an entry of stored scores in which `correct` has a value at the places of `right` only, as where a judge
    could not read the other replies.
    """

    def build(label: str, right: Mapping[int, bool], **details: object) -> Entry:
        scores = score(fake_task, many, Predictions(label, {many[0].id: Prediction(many[0].id, "x")}))
        items = tuple(
            replace(item, metrics={"correct": float(right[place])} if place in right else {})
            for place, item in enumerate(scores.items)
        )
        write_scores(tmp_path / "scored" / label, replace(scores, items=items))
        return Entry(label, tmp_path / "scored" / label, details=details)

    return build
