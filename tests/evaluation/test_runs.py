from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation.compare import Readers, no_readers
from evaluation.predictions import Prediction, write_predictions
from evaluation.runs import compare_paths, read_config, read_steps, resolve, training_facts
from evaluation.training import setting
from tasks.base import Task, UserError


def _predict(path: Path, ids: list[str], meta: dict[str, Any] | None = None) -> Path:
    write_predictions(path, [Prediction(name, "cba") for name in ids])
    if meta is not None:
        path.with_name(f"{path.stem}.meta.json").write_text(json.dumps(meta))
    return path


@pytest.fixture
def task_name() -> str:
    return f"{Path(__file__).parent / 'fake_task.py'}:TASK"


@pytest.fixture
def run(tmp_path: Path, task_name: str) -> Path:
    """A run folder with two rows, one of them of another split."""
    folder = tmp_path / "run-a"
    ids = ["backwards-test-0", "backwards-test-1"]
    meta = {"task": task_name, "split": "test", "source": str(tmp_path / "test.jsonl"), "shots": 2, "prompt": "natural"}
    _predict(folder / "predictions" / "base.jsonl", ids, {"label": "base, 2 shots", "note": "as asked"} | meta)
    _predict(folder / "predictions" / "tuned.jsonl", ids)
    _predict(folder / "predictions" / "valid.jsonl", ["backwards-valid-0"], meta | {"split": "valid"})
    (folder / "config.yaml").write_text(
        f"task: {task_name}\ndata:\n  source: {tmp_path / 'test.jsonl'}\ntrain: {{seed: 3}}\nray: {{num_workers: 2}}\n"
    )
    (folder / "provenance.json").write_text('{"git_sha": "abc"}')
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    (tmp_path / "test.jsonl").write_text('{"word": "abc"}\n{"word": "xyz"}\n')
    return folder


def test_a_run_folder_gives_rows_curve_and_provenance(run: Path, task_name: str) -> None:
    found = resolve([run], split="test")
    assert [(entry.label, entry.note, dict(entry.details)) for entry in found.entries] == [
        ("base, 2 shots", "as asked", {"shots": 2, "prompt": "natural", "workers": 2}),
        ("tuned", "", {"seed": 3, "setting": setting([read_config(run)]), "workers": 2}),
    ]
    assert (found.task, found.split, found.source) == (task_name, "test", str(run.parent / "test.jsonl"))
    assert [line["loss"] for line in found.loss_curve] == [2.0, 1.0]
    assert found.provenance["git_sha"] == "abc"
    assert found.provenance["config"]["task"] == task_name


def test_a_run_that_continues_another_has_the_rows_and_hours_of_both(tmp_path: Path) -> None:
    line = json.dumps({"step": 1, "tokens": 3600, "tokens_per_s": 1.0}) + "\n"
    for name, base, rows in (("first", "some/model", 30), ("second", tmp_path / "first" / "export", 12)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(f"model: {{name_or_path: {base}}}\nray: {{num_workers: 1}}\n")
        (folder / "metrics.jsonl").write_text(line)
        (folder / "provenance.json").write_text(json.dumps({"data": {"train": {"rows": rows}}}))
    _predict(tmp_path / "second" / "predictions" / "tuned.jsonl", ["a"])
    (entry,) = resolve([tmp_path / "second"]).entries
    assert (entry.details["training_rows"], entry.details["worker_hours"]) == (42, 2.0)
    assert training_facts(tmp_path / "first")["worker_hours"] == 1.0


def test_leaks_come_from_the_run_folder_and_from_a_file(run: Path, tmp_path: Path) -> None:
    (run / "leaks.json").write_text('{"backwards-test-0": "in train"}')
    (tmp_path / "more.json").write_text('{"backwards-test-1": "in the prompt"}')
    results = compare_paths([run], out=tmp_path / "out", split="test", leaks=tmp_path / "more.json")
    assert results["leaks"]["records"] == {"backwards-test-0": "in train", "backwards-test-1": "in the prompt"}
    assert results["leaks"]["against"] == [f"leaks.json of {run.name}", "more.json"]
    assert "leak: in the prompt" in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "more.json").write_text('{"backwards-test-1": 3}')
    with pytest.raises(UserError, match=r"'backwards-test-1' has 3"):
        compare_paths([run], out=tmp_path / "out", split="test", leaks=tmp_path / "more.json")


def test_rows_of_different_splits_are_refused_until_one_is_named(run: Path) -> None:
    with pytest.raises(UserError, match=r"different splits: test, valid(.|\n)*--split"):
        resolve([run])
    (run / "predictions" / "tuned.jsonl").unlink()  # it does not say its split, so it would do for any
    with pytest.raises(UserError, match="no predictions of split 'train'"):
        resolve([run], split="train")


def test_rows_of_different_tasks_are_refused(tmp_path: Path) -> None:
    paths = [_predict(tmp_path / f"{name}.jsonl", ["a"], {"task": name}) for name in ("gsm8k", "viggo")]
    with pytest.raises(UserError, match="different tasks: gsm8k, viggo"):
        resolve(paths)
    assert resolve(paths, task="viggo").task == "viggo"


def test_repeated_labels_are_told_apart(tmp_path: Path) -> None:
    paths = [_predict(tmp_path / folder / "tuned.jsonl", ["a"]) for folder in ("x", "y", "z/x")]
    labels = [entry.label for entry in resolve([*paths, _predict(tmp_path / "gpt-4.jsonl", ["a"])]).entries]
    assert labels == ["x/tuned", "y/tuned", "x/tuned (2)", "gpt-4"]


def test_several_runs_keep_their_provenance_apart(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run-b"
    _predict(other / "predictions" / "tuned.jsonl", ["a"])
    found = resolve([run, other], split="test")
    assert set(found.provenance) == {"run-a", "run-b"}
    assert len(found.loss_curve) == 2


def test_metrics_may_be_a_folder_of_segments(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    for name, step in (("attempt-1.jsonl", 2), ("attempt-0.jsonl", 1)):
        (tmp_path / "metrics.jsonl" / name).write_text(json.dumps({"step": step, "loss": 1.0}) + "\n")
    assert [line["step"] for line in read_steps(tmp_path)] == [1, 2]
    assert read_steps(tmp_path / "absent") == []


@pytest.mark.parametrize("text", ["a: [", "- 1"])
def test_a_broken_config_is_a_user_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        read_config(tmp_path)


@pytest.mark.parametrize("make", [True, False])
def test_a_path_without_predictions_is_a_user_error(tmp_path: Path, make: bool) -> None:
    path = tmp_path / "empty"
    if make:
        path.mkdir()
    with pytest.raises(UserError, match="holds no predictions" if make else "no such file or folder"):
        resolve([path])


def test_compare_takes_what_it_needs_from_the_run_folder(run: Path, tmp_path: Path) -> None:
    results = compare_paths([run], out=tmp_path / "out", split="test")
    assert [(row["label"], row["metrics"]["correct"]["mean"]) for row in results["models"]] == [
        ("base, 2 shots", 0.5),
        ("tuned", 0.5),
    ]
    assert (results["n"], results["split"], results["source"]) == (2, "test", str(tmp_path / "test.jsonl"))
    assert (tmp_path / "out" / "report.html").is_file()


def test_compare_takes_references_from_the_command_line(tmp_path: Path, task_name: str) -> None:
    (tmp_path / "gold.jsonl").write_text('{"word": "abc"}\n{"word": "xyz"}\n')
    path = _predict(tmp_path / "tuned.jsonl", ["backwards-gold-0"])
    results = compare_paths([path], out=tmp_path / "out", task=task_name, references=tmp_path / "gold.jsonl", limit=1)
    assert (results["n"], results["limit"], results["split"], results["source"]) == (1, 1, "gold", "gold.jsonl")


def test_compare_asks_for_what_nobody_says(tmp_path: Path, task_name: str) -> None:
    path = _predict(tmp_path / "tuned.jsonl", ["a"])
    with pytest.raises(UserError, match="pass --task"):
        compare_paths([path], out=tmp_path / "out")
    with pytest.raises(UserError, match="pass --references"):
        compare_paths([path], out=tmp_path / "out", task=task_name)


def _add_to_config(run: Path, **changes: Any) -> None:
    config = read_config(run)
    config["data"] |= changes.pop("data", {})
    (run / "config.yaml").write_text(yaml.safe_dump(config | changes))


def test_columns_of_the_run_are_those_of_its_source(run: Path, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"said": "abc"}\n{"said": "xyz"}\n')
    _add_to_config(run, data={"columns": {"said": "word"}})
    results = compare_paths([run], out=tmp_path / "out", split="test")
    assert [row["metrics"]["correct"]["mean"] for row in results["models"]] == [0.5, 0.5]
    assert resolve([run], split="test", source="bundled").columns == {}, "another source has columns of its own"


def test_options_of_the_run_are_those_of_its_task(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    meta = {"task": "gsm8k", "split": "test", "source": "bundled"}
    _predict(folder / "predictions" / "tuned.jsonl", ["gsm8k-test-0"], meta)
    (folder / "config.yaml").write_text("task: gsm8k\ntask_options: {calculator: false}\ndata: {source: bundled}\n")
    seen: list[Task] = []

    def readers(task: Task) -> Readers:
        seen.append(task)
        return no_readers

    compare_paths([folder], out=tmp_path / "out", limit=1, readers=readers)
    compare_paths([folder], out=tmp_path / "out", limit=1, readers=readers, task_options={})
    assert [task.options["calculator"] for task in seen] == [False, True], "what is given wins"
    assert resolve([folder], task="viggo").task_options == {}


def test_runs_with_different_settings_are_refused_until_the_user_decides(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run-b"))
    _add_to_config(other, task_options={"x": 1})
    assert resolve([other], split="test").task_options == {"x": 1}
    with pytest.raises(UserError, match=r"different task_options(.|\n)*--task"):
        resolve([run, other], split="test")
    assert resolve([run, other], split="test", task=str(read_config(run)["task"])).task_options == {}
    strange = {"task": "viggo", "split": "test"}
    _predict(other / "predictions" / "tuned.jsonl", ["a"], strange)
    assert resolve([other / "predictions" / "tuned.jsonl"]).task_options == {}
    (other / "predictions" / "base.jsonl").unlink()
    assert resolve([other], split="test").task_options == {}, "the run's options are not those of another task"
