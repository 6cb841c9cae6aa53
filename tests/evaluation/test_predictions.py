from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.predictions import (
    Matched,
    Matching,
    Prediction,
    Predictions,
    indexed_predictions,
    read_predictions,
    write_predictions,
)
from tasks.base import UserError


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows = [
        Prediction("a", "x\ny", "m", 3, 4, "stop", "1", {"latency_s": 0.5}),
        Prediction("b", ""),
        Prediction("c", "half a pair: \ud800"),
    ]
    write_predictions(tmp_path / "p.jsonl", rows)
    read = read_predictions(tmp_path / "p.jsonl")
    assert list(read.by_id.values()) == rows
    assert read.duplicates == 0


def test_a_line_has_the_keys_of_the_contract_and_no_empty_ones() -> None:
    line = Prediction("a", "x", model="m", completion_tokens=2, extra={"note": "kept"}).as_line()
    assert json.loads(line) == {"id": "a", "completion": "x", "model": "m", "completion_tokens": 2, "note": "kept"}


def test_truncation_is_finish_reason_length() -> None:
    assert Prediction("a", "x", finish_reason="length").as_completion().truncated
    assert not Prediction("a", "x", finish_reason="stop").as_completion().truncated


def test_of_repeated_ids_the_last_wins_and_the_others_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    write_predictions(path, [Prediction("a", "1"), Prediction("b", "2"), Prediction("a", "3"), Prediction("a", "4")])
    read = read_predictions(path)
    assert {name: p.completion for name, p in read.by_id.items()} == {"a": "4", "b": "2"}
    assert read.duplicates == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"completion": "x"}, "'id' is nothing"),
        ({"id": 7, "completion": "x"}, "'id' is 7"),
        ({"id": "a"}, "'completion' is nothing"),
        ({"id": "a", "completion": None}, "'completion' is None"),
        ({"id": "a", "completion": "x", "finish_reason": 1}, "'finish_reason' is 1"),
        ({"id": "a", "completion": "x", "completion_tokens": "9"}, "'completion_tokens' is '9'"),
        ({"id": "a", "completion": "x", "prompt_tokens": True}, "'prompt_tokens' is True"),
        ({"id": "a", "completion": "x", "prompt_tokens": -1}, "'prompt_tokens' is -1"),
    ],
)
def test_a_bad_prediction_is_named_by_file_and_line(tmp_path: Path, line: dict[str, object], says: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "ok", "completion": ""}\n' + json.dumps(line) + "\n")
    with pytest.raises(UserError) as caught:
        read_predictions(path)
    assert f"{path}, line 2: {says}" in str(caught.value)


def test_nulls_are_the_same_as_absent_keys(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "completion": "x", "model": null, "finish_reason": null, "prompt_tokens": null}\n')
    assert read_predictions(path).by_id["a"] == Prediction("a", "x")


def _predictions(*rows: Prediction, duplicates: int = 0) -> Predictions:
    return Predictions("p.jsonl", {row.id: row for row in rows}, duplicates)


def match(given: Predictions, scored: list[str], beyond: list[str], task_version: str) -> Matched:
    matching = Matching(given, task_version)
    for name in scored:
        matching.completion(name)
    for name in beyond:
        matching.know(name)
    return matching.result()


def test_match_counts_missing_unknown_and_truncated() -> None:
    given = _predictions(
        Prediction("a", "x", finish_reason="length", task_version="0"),
        Prediction("later", "x", finish_reason="length"),
        Prediction("stranger", "x"),
        duplicates=1,
    )
    found = match(given, scored=["a", "b"], beyond=["later"], task_version="1")
    assert (found.missing, found.unknown, found.truncated) == (1, 1, 1)
    text = " | ".join(found.warnings)
    assert "1 of 2 records have no prediction" in text
    assert "1 predictions have ids that are not in the references, e.g. 'stranger'" in text
    assert "made for task version 0" in text
    assert "1 lines repeat an id" in text


def test_match_says_nothing_when_all_is_well() -> None:
    found = match(_predictions(Prediction("a", "x", task_version="1")), ["a"], [], "1")
    assert found.warnings == ()


def test_predictions_of_other_records_are_refused_with_ids_of_both() -> None:
    with pytest.raises(UserError, match=r"'x-train-0'") as caught:
        match(_predictions(Prediction("x-train-0", "")), ["x-test-0"], [], "1")
    assert "'x-test-0'" in str(caught.value)


def test_a_file_without_predictions_is_refused() -> None:
    with pytest.raises(UserError, match="no predictions"):
        match(_predictions(), ["a"], [], "1")


def test_an_index_gives_what_reading_gives(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [Prediction(f"r{i}", "x" * i, extra={"note": "é\u2028"}) for i in range(50)]
    write_predictions(path, [*rows, Prediction("r7", "again"), Prediction("r7", "at last")])
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n\n", 3))
    read = read_predictions(path)
    with indexed_predictions(path) as index:
        assert dict(index.by_id) == read.by_id
        assert index.by_id["r7"].completion == "at last"
        assert "r50" not in index.by_id
        assert (index.duplicates, index.name, len(index.by_id)) == (2, read.name, 50)
        with pytest.raises(KeyError):
            index.by_id["r50"]


def test_an_index_refuses_a_bad_line_before_anything_is_scored(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "ok", "completion": ""}\n{"id": "a"}\n')
    with pytest.raises(UserError, match="line 2: 'completion' is nothing"), indexed_predictions(path):
        pytest.fail("the block was entered")
