"""Validation by the task's metric: which checkpoint is the best, when patience is out, what is pending or forgotten."""

from __future__ import annotations

import os

import pytest

import tasks
from fulltune import checkpoint, metrics, validation
from fulltune.config import ValidationConfig
from fulltune.validation import Outcome, Watch
from tasks.base import UserError


def done(step, value):
    return Outcome(step, "done", 10.0 * step, 10.0 * step + 5, n=4, metrics={"exact": value})


def outcomes(*values):
    return [done(10 * (i + 1), value) for i, value in enumerate(values)]


def test_the_best_is_the_earliest_of_the_highest():
    assert validation.best(outcomes(0.2, 0.7, 0.7, 0.1), "exact", higher_is_better=True).step == 20


def test_lower_may_be_better():
    assert validation.best(outcomes(0.2, 0.7, 0.1), "exact", higher_is_better=False).step == 30


def test_failed_and_skipped_validations_never_win():
    lost = Outcome(40, "failed", 0.0, 1.0, why="WorkerCrashedError")
    assert validation.best([lost], "exact", higher_is_better=True) is None
    assert validation.best([*outcomes(0.1), lost], "exact", higher_is_better=True).step == 10


@pytest.mark.parametrize(
    ("values", "patience", "wanted"),
    [((0.5, 0.4), 2, False), ((0.5, 0.4, 0.5), 2, True), ((0.5, 0.4, 0.6), 2, False), ((), 1, False)],
)
def test_patience_counts_validations_since_the_best(values, patience, wanted):
    known = outcomes(*values)
    assert validation.out_of_patience(known, "exact", higher_is_better=True, patience=patience) is wanted


def test_a_failed_validation_costs_no_patience():
    known = [*outcomes(0.5), Outcome(20, "failed", 0.0, 1.0, why="lost node")]
    assert not validation.out_of_patience(known, "exact", higher_is_better=True, patience=1)


def test_outcomes_are_read_back_and_forgotten_with_the_steps_they_are_about(tmp_path):
    for outcome in outcomes(0.1, 0.2, 0.3):
        validation.write(tmp_path, outcome)
    validation.write_early_stop(tmp_path, 30)
    assert validation.read(tmp_path) == outcomes(0.1, 0.2, 0.3)
    validation.forget_after(tmp_path, 20)
    assert [outcome.step for outcome in validation.read(tmp_path)] == [10, 20]
    assert validation.stopped_early(tmp_path) is None


def test_pending_are_the_due_steps_without_an_outcome(tmp_path):
    validation.write(tmp_path, done(20, 0.5))
    assert validation.pending(tmp_path, [5, 10, 20, 30, 33], every=10, last=33) == [10, 30, 33]


def test_the_watch_tells_news_once_and_protects_the_best_and_the_waiting(tmp_path):
    config = ValidationConfig(every_steps=10, metric="exact", patience=2)
    watch = Watch(tmp_path, config, tasks.get("viggo"))
    for step in (10, 20, 30, 35):
        (tmp_path / checkpoint.FOLDER / checkpoint.name(step)).mkdir(parents=True)
    for outcome in outcomes(0.6, 0.5):
        validation.write(tmp_path, outcome)
    assert [outcome.step for outcome in watch.news()] == [10, 20]
    assert watch.news() == []
    assert sorted(watch.wanted_steps()) == [10, 30]
    assert not watch.exhausted()
    validation.write(tmp_path, done(30, 0.6))
    assert watch.exhausted()


def publish(run, *steps):
    for step in steps:
        folder = run / checkpoint.FOLDER / checkpoint.name(step)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / checkpoint.MANIFEST).write_text("{}")


def test_of_those_that_wait_the_newest_stays_and_the_one_that_is_being_validated(tmp_path):
    watch = Watch(tmp_path, ValidationConfig(every_steps=10, metric="exact"), tasks.get("viggo"))
    publish(tmp_path, 10, 20, 30, 40)
    validation.scratch(tmp_path, 20).mkdir(parents=True)
    assert sorted(watch.wanted_steps()) == [20, 40]


def test_an_outcome_that_comes_in_while_the_watch_looks_loses_no_checkpoint(tmp_path, monkeypatch):
    watch = Watch(tmp_path, ValidationConfig(every_steps=10, metric="exact"), tasks.get("viggo"))
    publish(tmp_path, 10)
    real = validation.pending

    def between(*args, **kwargs):
        waiting = real(*args, **kwargs)
        validation.write(tmp_path, done(10, 0.9))
        return waiting

    monkeypatch.setattr(validation, "pending", between)
    assert 10 in watch.wanted_steps()


def test_a_step_that_is_taken_again_is_validated_and_told_again(tmp_path):
    watch = Watch(tmp_path, ValidationConfig(every_steps=10, metric="exact"), tasks.get("viggo"))
    publish(tmp_path, 10)
    validation.write(tmp_path, Outcome(10, "failed", 1.0, 2.0, why="damaged"))
    os.utime(validation.file_of(tmp_path, 10), ns=(1, 1))
    assert [outcome.status for outcome in watch.news()] == ["failed"]
    assert validation.pending(tmp_path, [10], every=10, last=0) == [10]
    validation.write(tmp_path, done(10, 0.9))
    assert validation.pending(tmp_path, [10], every=10, last=0) == []
    assert [outcome.status for outcome in watch.news()] == ["done"]
    assert watch.wanted_steps() == [10]


def test_late_outcomes_are_added_to_the_log_once(tmp_path):
    failed = Outcome(20, "failed", 1.0, 2.0, why="OutOfMemoryError")
    for _ in range(2):
        metrics.add_outcomes(tmp_path, [done(10, 0.5), failed])
    assert [line["validation"] for line in metrics.read(tmp_path)] == [{"exact": 0.5}, {"failed": "OutOfMemoryError"}]


def test_a_metric_that_cannot_choose_is_refused_with_those_that_can():
    with pytest.raises(UserError, match="exact") as error:
        validation.check(ValidationConfig(every_steps=10, metric="exakt"), tasks.get("viggo"))
    assert "validation.metric=exakt" in error.value.got
