"""Validation by the task's metric beside a real run: training goes on, failures are records, the best wins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from fulltune import checkpoint, config, metrics, validation
from ray_jobs.train import final_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LAST, EVERY = 400, 40
RECIPE: dict[str, Any] = {
    "model": {
        "init": "random",
        "config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
        },
        "tokenizer": {"vocab_size": 300},
    },
    # one example per micro-batch keeps a step long beside a validation
    "data": {"packing": False},
    "train": {
        "learning_rate": 3e-4,
        "lr_scheduler": "constant",
        "num_epochs": 1000,
        "max_steps": LAST,
        "global_batch_size": 32,
    },
    "deepspeed": "zero2",
    "ray": {"num_workers": 2, "cpus_per_worker": 0.5},
    "checkpoint": {"keep_last": 1},
    "validation": {"every_steps": EVERY, "metric": "right", "cpus": 0.5},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("validate")
    shutil.copy(Path(__file__).with_name("overfitting_task.py"), folder / "task.py")
    tree = RECIPE | {"task": f"{folder / 'task.py'}:TASK"}
    tree["ray"] = tree["ray"] | {"storage_path": str(folder)}
    path = folder / "overfit.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def finished(recipe, drive) -> config.RunConfig:
    """A run whose second validation is killed."""
    recipe.with_name("kill").write_text("1")
    assert drive(recipe) == 0
    return config.load(recipe)


def test_a_killed_validation_is_a_record_and_the_run_goes_on(finished):
    failed = [outcome for outcome in validation.read(finished.run_dir) if outcome.status == "failed"]
    assert len(failed) == 1
    assert "WorkerCrashedError" in failed[0].why
    lines = [line for line in metrics.read(finished.run_dir) if line["step"] == failed[0].step and "validation" in line]
    assert lines[0]["validation"] == {"failed": failed[0].why}
    assert max(line["step"] for line in metrics.read(finished.run_dir)) == LAST


def test_training_goes_on_while_answers_are_generated_and_scored(finished):
    steps = [(line["time"], line["step"]) for line in metrics.read(finished.run_dir) if "loss" in line]
    meanwhile = [
        sum(outcome.started < time < outcome.ended for time, _ in steps)
        for outcome in validation.read(finished.run_dir)
        if outcome.status == "done" and outcome.step < LAST
    ]
    assert max(meanwhile) >= 5


def test_every_due_step_has_exactly_one_outcome(finished):
    outcomes = validation.read(finished.run_dir)
    assert [outcome.step for outcome in outcomes] == list(range(EVERY, LAST + 1, EVERY))
    told = [line["step"] for line in metrics.read(finished.run_dir) if "validation" in line]
    assert sorted(told) == [outcome.step for outcome in outcomes]


def test_the_best_checkpoint_is_not_the_last_and_is_the_one_that_is_exported(finished):
    best = validation.best(validation.read(finished.run_dir), "right", higher_is_better=True)
    last = validation.read(finished.run_dir)[-1]
    assert best is not None
    assert best.step < LAST
    assert best.metrics["right"] > last.metrics["right"] + 0.3, "the run was built to over-fit"
    assert final_checkpoint(finished).name == checkpoint.name(best.step)
    assert checkpoint.verify(final_checkpoint(finished))


def test_patience_ends_a_run_early_and_the_same_command_does_not_train_again(recipe, drive):
    overrides = ("ray.name=patient", "validation.patience=2")
    assert drive(recipe, *overrides) == 0
    run = config.load(recipe, overrides)
    stop = json.loads((run.run_dir / validation.FOLDER / validation.EARLY_STOP).read_text())["step"]
    assert stop < LAST
    steps = [line["step"] for line in metrics.read(run.run_dir) if "loss" in line]
    assert drive(recipe, *overrides) == 0
    assert [line["step"] for line in metrics.read(run.run_dir) if "loss" in line] == steps
