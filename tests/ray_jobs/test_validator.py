"""The validator's thread without Ray: which checkpoint is taken, what is recorded, what it survives."""

from __future__ import annotations

import shutil
import threading
from types import SimpleNamespace

import pytest

from fulltune import checkpoint, validation
from fulltune.config import ValidationConfig
from fulltune.validation import Outcome
from ray_jobs import validate


@pytest.fixture
def validator(tmp_path, monkeypatch):
    """One whose validations succeed at once; `validated` are their steps."""
    run = SimpleNamespace(run_dir=tmp_path, validation=ValidationConfig(every_steps=10, metric="exact"))
    made = validate._Validator(run=run, total_steps=45, done=threading.Event(), say=lambda _: None, since=0)
    validated = []

    def right(self, step):
        assert (tmp_path / checkpoint.FOLDER / checkpoint.name(step)).exists()
        validation.scratch(tmp_path, step).mkdir(parents=True)
        validated.append(step)
        return Outcome(step, "done", 1.0, 2.0, n=1, metrics={"exact": 1.0})

    monkeypatch.setattr(validate._Validator, "_validate", right)
    monkeypatch.setattr(validate, "POLL_S", 0.01)
    return made, validated


def publish(run, *steps):
    for step in steps:
        folder = run / checkpoint.FOLDER / checkpoint.name(step)
        folder.mkdir(parents=True)
        (folder / checkpoint.MANIFEST).write_text("{}")


def outcomes(run):
    return {outcome.step: outcome.status for outcome in validation.read(run)}


def test_the_newest_is_validated_and_the_overtaken_are_recorded_also_where_they_are_gone(tmp_path, validator):
    made, validated = validator
    publish(tmp_path, 5, 10, 30, 40)  # 20 was published and pruned
    made.done.set()
    made.work()
    assert validated == [40]
    assert outcomes(tmp_path) == {10: "skipped", 20: "skipped", 30: "skipped", 40: "done"}
    assert not validation.scratch(tmp_path, 40).exists()


def test_steps_before_this_drivers_time_are_not_made_up(tmp_path, validator):
    made, _ = validator
    publish(tmp_path, 30, 40)
    later = validate._Validator(run=made.run, total_steps=45, done=made.done, say=made.say, since=30)
    made.done.set()
    later.work()
    assert outcomes(tmp_path) == {30: "skipped", 40: "done"}


def test_the_last_step_is_due_whatever_its_number(tmp_path, validator):
    made, validated = validator
    publish(tmp_path, 40, 45)
    made.done.set()
    made.work()
    assert validated == [45]


def test_a_checkpoint_stays_protected_until_its_outcome_is_known(tmp_path, validator, monkeypatch):
    made, _ = validator
    publish(tmp_path, 10)
    seen = []
    original = validation.write
    monkeypatch.setattr(
        validation,
        "write",
        lambda run, outcome: (seen.append(validation.scratch(run, outcome.step).exists()), original(run, outcome)),
    )
    made.done.set()
    made.work()
    assert seen == [True]


def test_a_disk_that_fails_for_a_moment_does_not_end_the_validations(tmp_path, validator, monkeypatch):
    made, validated = validator
    publish(tmp_path, 10)
    faults = iter([OSError("no space left"), OSError("stale handle")])
    original = validation.write

    def write(run, outcome):
        error = next(faults, None)
        if error is not None:
            raise error
        original(run, outcome)

    monkeypatch.setattr(validation, "write", write)
    thread = threading.Thread(target=made.work)
    thread.start()
    for _ in range(500):
        if outcomes(tmp_path):
            break
        thread.join(0.01)
    made.done.set()
    thread.join(10)
    assert not thread.is_alive()
    assert outcomes(tmp_path) == {10: "done"}
    assert validated == [10, 10, 10]


def test_a_step_that_is_taken_again_is_validated_again(tmp_path, validator):
    made, validated = validator
    publish(tmp_path, 10)
    made.done.set()
    made.work()
    shutil.rmtree(tmp_path / checkpoint.FOLDER / checkpoint.name(10))
    made.work()
    assert validated == [10]
    publish(tmp_path, 10)
    made.work()
    assert validated == [10, 10]
