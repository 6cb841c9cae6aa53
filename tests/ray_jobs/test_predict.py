"""Predictions go on where they were, refuse what others began, and never show the model a row it will be asked."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

import tasks
from evaluation import answer_journal, prediction_file
from evaluation.compare import role_of
from evaluation.comparison import Entry
from ray_jobs import predict
from tasks.base import UserError
from tasks.sources import load

TASK = tasks.get("viggo")


@pytest.fixture
def request_for(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")

    def make(**changes):
        common = {"task": "viggo", "split": "test", "source": "bundled", "model": str(folder), "label": "m"}
        return predict.Request(**(common | {"out": tmp_path / "p.jsonl", "prompt": "structured"} | changes))

    return make, folder


def begin(request, folder, lines):
    assert predict._continue(request, TASK, folder) == set()
    request.out.write_text("".join(json.dumps({"id": i, "completion": "x"}) + "\n" for i in lines))


def test_answers_on_disk_are_not_asked_again_and_a_torn_line_is_cut(request_for):
    make, folder = request_for
    begin(make(), folder, ["a", "b"])
    with make().out.open("a") as file:
        file.write('{"id": "c", "compl')
    assert predict._continue(make(), TASK, folder) == {"a", "b"}
    assert make().out.read_text().endswith("}\n")


@pytest.mark.parametrize("change", [{"shots": 2}, {"prompt": "natural"}, {"split": "valid"}])
def test_predictions_of_another_setting_are_refused(request_for, change):
    make, folder = request_for
    begin(make(), folder, ["a"])
    with pytest.raises(UserError, match=next(iter(change))):
        predict._continue(make(**change), TASK, folder)
    assert predict._continue(make(), TASK, folder) == {"a"}, "refusing must lose nothing"


def test_predictions_of_other_weights_are_refused_or_replaced(request_for):
    import os

    make, folder = request_for
    begin(make(), folder, ["a"])
    os.utime(folder / "model.safetensors", ns=(1, 1))
    with pytest.raises(UserError, match="weights"):
        predict._continue(make(), TASK, folder)
    assert predict._continue(make(replace=True), TASK, folder) == set()
    assert not make().out.exists()


def test_shots_come_from_train_by_seed_and_never_from_what_is_asked(request_for):
    make, _ = request_for
    shots = predict.pick_shots(TASK, make(shots=5))
    assert len(shots) == 5
    assert all(shot.id.startswith("viggo-train-") for shot in shots)
    asked = {record.id for record in load(TASK, "train", "bundled", limit=20)}
    assert not {s.id for s in predict.pick_shots(TASK, make(shots=5, split="train", limit=20))} & asked
    assert predict.pick_shots(TASK, make()) == []


def test_shots_do_not_depend_on_how_many_rows_are_asked(request_for, monkeypatch):
    """The question of the first worked example stands in the split to predict too, behind the limit."""
    make, _ = request_for
    first = predict.pick_shots(TASK, make(shots=5))[0]
    original = predict.load

    def leaking(task, split, *rest, limit=None, **named):
        rows = list(original(task, split, *rest, **named))
        return (rows if split == "train" else [*rows, replace(first, id="viggo-test-last")])[:limit]

    monkeypatch.setattr(predict, "load", leaking)
    few, many = (predict.pick_shots(TASK, make(shots=5, limit=limit)) for limit in (1, None))
    assert few == many
    assert first not in few


def test_more_shots_than_rows_is_a_user_error(request_for):
    make, _ = request_for
    with pytest.raises(UserError, match="worked examples"):
        predict.pick_shots(TASK, make(shots=10**6))


@pytest.mark.parametrize(
    ("before", "seconds", "workers", "spent"),
    [
        ({"seconds": 0.0, "workers": 4}, 10.0, 2, {"seconds": 10.0, "workers": 2}),
        ({"seconds": 10.0, "workers": 2}, 5.0, 2, {"seconds": 15.0, "workers": 2}),
        ({"seconds": 10.0, "workers": 2}, 30.0, 1, {"seconds": 40.0, "workers": 1.25}),  # 20 + 30 worker seconds
    ],
)
def test_seconds_times_workers_is_the_working_time_of_all_runs(before, seconds, workers, spent):
    assert predict._spent(before, seconds, workers) == spent


def test_another_engine_goes_on_only_where_it_writes_the_same_tokens(request_for):
    make, folder = request_for
    begin(make(), folder, ["a"])
    assert predict._continue(make(engine="hf-static"), TASK, folder) == {"a"}
    with pytest.raises(UserError, match="engine"):
        predict._continue(make(engine="vllm"), TASK, folder)


def test_answers_in_the_journals_of_a_killed_run_are_not_asked_again(request_for):
    make, folder = request_for
    begin(make(), folder, ["a"])
    journal = answer_journal.open_here(answer_journal.place(make().out))
    journal.write([{"id": "a", "completion": "x"}, {"id": "b", "completion": "y"}])
    journal.close()
    assert predict._continue(make(), TASK, folder) == {"a", "b"}
    lines = [json.loads(line) for line in make().out.read_text().splitlines()]
    assert lines == [{"id": "a", "completion": "x"}, {"id": "b", "completion": "y"}]
    assert predict._continue(make(), TASK, folder) == {"a", "b"}
    assert len(make().out.read_text().splitlines()) == 2, "a journal is taken once"


def test_journals_beside_a_file_that_was_deleted_are_dropped(request_for):
    make, folder = request_for
    begin(make(), folder, ["a"])
    journal = answer_journal.open_here(answer_journal.place(make().out))
    journal.write([{"id": "b", "completion": "y"}])
    journal.close()
    make().out.unlink()
    assert predict._continue(make(), TASK, folder) == set()
    assert answer_journal.take_all(make().out) == []


def test_another_limit_of_tokens_is_another_setting_and_older_files_had_the_tasks_own(request_for):
    make, folder = request_for
    begin(make(), folder, ["a"])
    facts = prediction_file.read_meta(make().out)
    facts["identity"].pop("max_new_tokens")
    prediction_file.write_meta(make().out, facts)
    assert predict._continue(make(), TASK, folder) == {"a"}
    with pytest.raises(UserError, match="max_new_tokens"):
        predict._continue(make(max_new_tokens=7), TASK, folder)


def test_without_a_role_the_label_decides_which_row_of_a_report_it_is(request_for):
    make, folder = request_for
    begin(make(label="tuned"), folder, ["a"])
    assert role_of(Entry("tuned", make().out, details=prediction_file.read_meta(make().out))) == "tuned"
    prediction_file.write_meta(make().out, prediction_file.read_meta(make().out) | {"role": "other"})
    assert predict._continue(make(), TASK, folder) == {"a"}, "files that older versions began go on"
    assert "role" not in prediction_file.read_meta(make().out)
    assert predict._continue(make(role="base"), TASK, folder) == {"a"}
    assert prediction_file.read_meta(make().out)["role"] == "base"


class Killed(BaseException):
    """Stands for a SIGKILL: what is on disk when it is raised is all that is left."""


@pytest.mark.parametrize("rows", [[{"id": "a", "completion": "x"}], []], ids=["an answer came", "none came"])
def test_the_time_of_a_killed_run_is_counted(request_for, monkeypatch, rows):
    make, folder = request_for
    left = {}

    class Pool:
        workers, batching = 2, "continuous"

        def __init__(self, *_):
            pass

        def answers(self, missing):
            time.sleep(0.2)
            yield rows
            left.update(prediction_file.read_meta(make().out))
            raise Killed

        def close(self):
            pass

    monkeypatch.setattr(predict, "_Pool", Pool)
    monkeypatch.setattr(prediction_file, "KEEP_TIME_S", 0.1)
    for run in (1, 2):
        predict._continue(make(), TASK, folder)
        with pytest.raises(Killed):
            predict._run(make(), folder, [], [])
        prediction_file.write_meta(make().out, left)
        assert 0.2 * run <= left["seconds"] < 0.2 * run + 5
    assert (left["workers"], left["batching"]) == (2, "continuous")


def test_the_time_spent_is_not_written_with_every_answer(tmp_path):
    written = []
    keep_time = prediction_file.timekeeper(tmp_path / "p.jsonl", lambda seconds: written.append(seconds) or {})
    for _ in range(100):
        keep_time()
    assert written == []
