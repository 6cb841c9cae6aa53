"""`fulltune tasks`: the list, a task with its texts, scores and facts, and leaks written to a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tasks
from ray_jobs.cli import main

TEMPLATE = f"{Path(tasks.__file__).parent / 'template' / 'my_task.py'}:TASK"
CSV = "text,facts\n{}\n"


def row(quantity: int, facts: str = "item=oak chairs; quantity={}; city=Lisbon") -> str:
    return f"Please send {quantity} oak chairs to Lisbon.,{facts.format(quantity)}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits: one question of test stands in train, two rows cannot be used."""
    (tmp_path / "train.csv").write_text(CSV.format("\n".join(row(n) for n in (3, 4, 5, 5)) + "\nNothing,none"))
    (tmp_path / "test.csv").write_text(CSV.format("\n".join([row(7), row(4), "Odd,none"])))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["tasks", *arguments]) == 0
    return capsys.readouterr().out


def test_the_list_names_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys).splitlines()
    assert [line.split()[0] for line in lines] == list(tasks.names())
    listed = json.loads(run(capsys, "--json"))["tasks"]
    assert [one["name"] for one in listed] == list(tasks.names())


@pytest.mark.parametrize("name", ["viggo", "gsm8k", TEMPLATE])
def test_a_task_is_shown_with_everything(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, name)
    task = tasks.get(name)
    for section in ("record", "training text", "baseline prompt", "the reference, scored", "split test", "questions"):
        assert f"\n== {section}" in shown
    assert f"{task.stop}]]" in shown
    assert all(metric in shown for metric in (*task.metric_names, *task.errors))
    assert "-> right: " in shown


def test_json_holds_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, TEMPLATE, "--source", str(folder), "--shots", "1", "--json"))
    assert found["record"]["id"] == "my_task-train-0"
    assert [segment["loss"] for segment in found["training_text"]] == [False, True]
    assert found["prompt"].count("Order: ") == 2
    assert [answer["error"] for answer in found["scored"]] == [None, "wrong_value"]
    train, test = found["splits"]["train"], found["splits"]["test"]
    assert (train["rows"], train["rejected"], train["duplicates"]) == (4, ["my_task-train-4"], 1)
    assert (test["rows"], test["rejected"], test["labels"]) == (2, ["my_task-test-2"], {"Lisbon": 2})
    (overlap,) = [one for one in found["leaks"]["overlaps"] if one["seen_in"] == "train"]
    assert (overlap["rows"], overlap["exact"], overlap["answers"]) == (2, 1, 1)


def test_leaks_are_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "leaks.json"
    run(capsys, TEMPLATE, "--source", str(folder), "--out", str(out))
    assert json.loads(out.read_text()) == {
        "my_task-test-1": "the same question as my_task-train-1 (train), same answer"
    }


def test_one_split_or_one_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = json.loads(run(capsys, TEMPLATE, "--source", str(folder), "--split", "test", "--shots", "0", "--json"))
    assert list(one["splits"]) == ["test"]
    file = json.loads(run(capsys, TEMPLATE, "--source", str(folder / "train.csv"), "--json"))
    assert list(file["splits"]) == ["train"]


def test_a_missing_split_is_said_and_the_others_are_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", TEMPLATE, "--source", str(folder)]) == 0
    captured = capsys.readouterr()
    assert "no split valid: " in captured.err
    assert "== split train" in captured.out
    assert "== split test" in captured.out


def test_a_source_without_any_usable_row_is_a_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test.csv").write_text(CSV.format("Nothing,none"))
    assert main(["tasks", TEMPLATE, "--source", str(tmp_path)]) == 2
    assert "no row that task my_task accepts" in capsys.readouterr().err


def test_a_source_that_does_not_exist_is_a_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "viggo", "--source", str(tmp_path / "no_such.csv")]) == 2
    assert "no_such.csv" in capsys.readouterr().err
