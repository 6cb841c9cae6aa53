from __future__ import annotations

from dataclasses import replace

import pytest

from evaluation.pool import TaskSpec, score_pair, score_pairs
from tasks.base import Completion, Record, Score, Task, UserError


def _pairs(task: Task, records: list[Record]) -> list[tuple[Record, Completion]]:
    return [(r, Completion(task.reference(r) if i % 3 else f"no {i}")) for i, r in enumerate(records)]


def test_two_processes_give_what_one_gives_in_the_same_order(
    fake_task: Task, fake_spec: TaskSpec, many: list[Record]
) -> None:
    pairs = _pairs(fake_task, many)
    one = list(score_pairs(fake_task, pairs, processes=1))
    two = list(score_pairs(fake_task, pairs, processes=2, spec=fake_spec, pool_after_s=0.0))
    assert two == one
    assert [item.id for item in one] == [record.id for record in many]


def test_a_small_input_starts_no_pool(
    fake_task: Task, fake_spec: TaskSpec, many: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.pool._in_pool", lambda *_: pytest.fail("a pool was started"))
    assert len(list(score_pairs(fake_task, _pairs(fake_task, many), processes=2, spec=fake_spec))) == len(many)


def test_a_task_that_no_name_leads_to_is_scored_here(
    fake_task: Task, many: list[Record], caplog: pytest.LogCaptureFixture
) -> None:
    items = list(score_pairs(fake_task, _pairs(fake_task, many), processes=2, pool_after_s=0.0))
    assert len(items) == len(many)
    assert "scoring in one process" in caplog.text


def test_another_version_under_the_same_name_is_not_used(
    fake_task: Task, fake_spec: TaskSpec, many: list[Record], caplog: pytest.LogCaptureFixture
) -> None:
    newer = replace(fake_task, version="4")
    assert len(list(score_pairs(newer, _pairs(newer, many), processes=2, spec=fake_spec, pool_after_s=0.0))) == 120
    assert "scoring in one process" in caplog.text


@pytest.mark.parametrize("processes", [1, 2])
def test_a_scorer_that_raises_names_task_and_record(
    fake_task: Task, fake_spec: TaskSpec, words: list[Record], processes: int
) -> None:
    pairs = [(record, Completion("crash" if record is words[3] else "fine")) for record in words]
    with pytest.raises(RuntimeError, match=r"'backwards' failed on 'backwards-test-3'.*a bug in a scorer"):
        list(score_pairs(fake_task, pairs, processes=processes, spec=fake_spec, pool_after_s=0.0))


def test_metrics_that_are_no_numbers_do_not_apply(fake_task: Task, words: list[Record]) -> None:
    odd = replace(fake_task, score=lambda *_: Score({"correct": float("nan"), "letters": 2}, None, None, ""))
    assert score_pair(odd, words[0], Completion("")).metrics == {"letters": 2.0}


def test_no_process_at_all_is_a_user_error(fake_task: Task) -> None:
    with pytest.raises(UserError, match="processes 0"):
        list(score_pairs(fake_task, [], processes=0))
