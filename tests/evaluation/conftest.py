"""Shared pieces of the evaluation tests: the fake task, its records, and predictions with known faults."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tasks
from evaluation.comparison import Entry
from evaluation.pool import TaskSpec
from evaluation.predictions import Prediction, write_predictions
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
