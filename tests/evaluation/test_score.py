from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation import pool
from evaluation.pool import ItemScore, TaskSpec
from evaluation.predictions import Prediction, Predictions, write_predictions
from evaluation.score import count_errors, read_items, score, score_file, summarise
from tasks.base import Completion, Metric, Record, Score, Task, UserError


@pytest.fixture
def answers() -> Predictions:
    """abc right, live shouted, tar cut off, on answered twice, xy missing, one stranger."""
    rows = [
        Prediction("backwards-test-0", "cba"),
        Prediction("backwards-test-1", "EVIL"),
        Prediction("backwards-test-2", "ra", finish_reason="length"),
        Prediction("backwards-test-3", "please no"),
        Prediction("backwards-train-7", "x"),
    ]
    return Predictions("answers.jsonl", {row.id: row for row in rows}, duplicates=1)


def test_metrics_json_is_the_contract_to_the_character(
    fake_task: Task, words: list[Record], answers: Predictions, tmp_path: Path, golden: Callable[[str, str], None]
) -> None:
    found = score(fake_task, words, answers, out=tmp_path)
    golden("evaluation_metrics.json", (tmp_path / "metrics.json").read_text())
    golden("evaluation_scores.jsonl", (tmp_path / "scores.jsonl").read_text())
    assert json.loads((tmp_path / "metrics.json").read_text()) == found.as_json()


def test_the_figures_by_hand(fake_task: Task, words: list[Record], answers: Predictions) -> None:
    found = score(fake_task, words, answers)
    assert {name: value.mean for name, value in found.metrics.items()} == pytest.approx(
        {"correct": 1 / 5, "shared": (1 + 0 + 2 / 3 + 1 + 0) / 5, "letters": 18 / 5, "format_violation": 3 / 5}
        | {"politeness": 1 / 4}
    )
    assert {name: value.n for name, value in found.metrics.items()} == dict.fromkeys(found.metrics, 5) | {
        "politeness": 4
    }
    assert found.errors == {"empty": 1, "truncated": 1, "shouting": 1, "wrong": 1}
    assert (found.n, found.missing, found.duplicates, found.unknown, found.truncated) == (5, 1, 1, 1, 1)


def test_limit_takes_the_first_records_and_calls_later_predictions_known(
    fake_task: Task, words: list[Record], answers: Predictions
) -> None:
    found = score(fake_task, words, answers, limit=2)
    assert [item.id for item in found.items] == ["backwards-test-0", "backwards-test-1"]
    assert (found.n, found.missing, found.unknown, found.truncated) == (2, 0, 1, 0)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_a_user_error(
    fake_task: Task, words: list[Record], answers: Predictions, limit: int
) -> None:
    with pytest.raises(UserError, match="limit"):
        score(fake_task, words, answers, limit=limit)


def test_files_do_not_depend_on_the_number_of_processes(
    fake_task: Task, fake_spec: TaskSpec, many: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Prediction(r.id, fake_task.reference(r) if i % 4 else "w" * (i % 7)) for i, r in enumerate(many)]
    write_predictions(tmp_path / "p.jsonl", rows)
    pooled: list[int] = []
    in_pool = pool._in_pool

    def watched(spec: TaskSpec, pairs: Iterator[pool.Pair], processes: int) -> Iterator[ItemScore]:
        pooled.append(processes)
        return in_pool(spec, pairs, processes)

    monkeypatch.setattr(pool, "_in_pool", watched)
    monkeypatch.setattr(pool, "POOL_AFTER_S", 0.0)
    for processes in (1, 2):
        score_file(
            fake_task, many, tmp_path / "p.jsonl", processes=processes, spec=fake_spec, out=tmp_path / str(processes)
        )
    assert pooled == [2]
    for name in ("scores.jsonl", "metrics.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_file_gives_what_is_given_in_memory(
    fake_task: Task, words: list[Record], answers: Predictions, tmp_path: Path
) -> None:
    write_predictions(tmp_path / "p.jsonl", [Prediction("backwards-test-3", "x"), *answers.by_id.values()])
    for limit in (None, 3):
        whole = score(fake_task, words, answers, limit=limit, out=tmp_path / "a")
        streamed = score_file(fake_task, iter(words), tmp_path / "p.jsonl", limit=limit, out=tmp_path / "b")
        assert streamed == replace(whole, items=())
        for name in ("scores.jsonl", "metrics.json"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_scores_are_read_back(fake_task: Task, words: list[Record], answers: Predictions, tmp_path: Path) -> None:
    found = score(fake_task, words, answers, out=tmp_path)
    assert tuple(read_items(tmp_path / "scores.jsonl")) == found.items


def test_a_line_that_is_no_score_is_named(tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_text('{"id": "a", "metrics": {}}\n{"id": "b", "metrics": {"m": "x"}}\n')
    with pytest.raises(UserError, match=r"scores\.jsonl, line 2"):
        list(read_items(tmp_path / "scores.jsonl"))


def test_an_id_twice_in_the_references_is_refused(fake_task: Task, words: list[Record], answers: Predictions) -> None:
    with pytest.raises(UserError, match="'backwards-test-0' twice"):
        score(fake_task, [*words, words[0]], answers)


def test_no_references_are_refused(fake_task: Task, answers: Predictions) -> None:
    with pytest.raises(UserError, match="no references"):
        score(fake_task, [], answers)


def test_a_metric_the_task_does_not_declare_is_a_bug_of_the_task(fake_task: Task) -> None:
    with pytest.raises(ValueError, match="'surprise', which is not among its metrics"):
        summarise(fake_task, [ItemScore("a", {"surprise": 1.0}, None, None, "")])


def test_categories_stand_in_the_tasks_order_and_absent_ones_are_left_out(fake_task: Task) -> None:
    items = [ItemScore(str(i), {}, None, error, "") for i, error in enumerate(["wrong", "new", None, "empty", "wrong"])]
    assert list(count_errors(fake_task, items).items()) == [("empty", 1), ("wrong", 2), ("new", 1)]


def test_nothing_is_written_when_scoring_fails(fake_task: Task, words: list[Record], tmp_path: Path) -> None:
    given = Predictions("p", {words[0].id: Prediction(words[0].id, "crash")})
    with pytest.raises(RuntimeError, match="failed on"):
        score(fake_task, words, given, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_predictions(tmp_path / "p.jsonl", given.by_id.values())
    with pytest.raises(RuntimeError, match="failed on"):
        score_file(fake_task, words, tmp_path / "p.jsonl", out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_predictions_of_other_records_write_nothing(fake_task: Task, words: list[Record], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of 1 ids is in the references"):
        score(fake_task, words, Predictions("p", {"x": Prediction("x", "y")}), out=tmp_path / "out")
    write_predictions(tmp_path / "p.jsonl", [Prediction("x", "y")])
    with pytest.raises(UserError, match="none of 1 ids is in the references"):
        score_file(fake_task, words, tmp_path / "p.jsonl", out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_file_is_scored_record_by_record(fake_task: Task, many: list[Record], tmp_path: Path) -> None:
    taken: list[str] = []
    scored: list[str] = []

    def stream() -> Iterator[Record]:
        for record in many:
            taken.append(record.id)
            yield record

    def watched(record: Record, completion: Completion) -> Score:
        scored.append(record.id)
        assert taken[-1] == record.id, "a record was read before the one before it was scored"
        return fake_task.score(record, completion)

    write_predictions(tmp_path / "p.jsonl", [Prediction(r.id, fake_task.reference(r)) for r in many])
    task = replace(fake_task, score=watched)
    found = score_file(task, stream(), tmp_path / "p.jsonl", processes=1, out=tmp_path)
    assert (found.items, found.n, found.metrics["correct"].mean) == ((), 120, 1.0)
    assert [item.id for item in read_items(tmp_path / "scores.jsonl")] == scored == taken


def test_what_a_parser_returns_is_written_as_json(fake_task: Task, words: list[Record], tmp_path: Path) -> None:
    verdict = Score({"m": 1.0}, {"path": Path("a"), "list": (float("inf"),)}, None, "")
    odd = replace(fake_task, metrics=(Metric("m", "m"),), score=lambda *_: verdict)
    given = Predictions("p", {words[0].id: Prediction(words[0].id, "x")})
    score(odd, words[:1], given, out=tmp_path)
    assert json.loads((tmp_path / "scores.jsonl").read_text())["parsed"] == {"path": "a", "list": ["inf"]}
