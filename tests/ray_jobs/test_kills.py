"""A killed worker and a killed driver cost time and nothing else: the losses stay those of the undisturbed run."""

from __future__ import annotations

import importlib.util
import random
import signal
from pathlib import Path

import pytest
import torch

from fulltune import checkpoint
from fulltune.engine import shards

# tests/ is not a package: the helpers beside this file are loaded by path
_SPEC = importlib.util.spec_from_file_location("ray_jobs_test_helpers", Path(__file__).with_name("conftest.py"))
helpers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(helpers)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

STEPS = 60
KILLS = 10
SEED = 20261122


def finish(process, log, bound_s):
    assert process.wait(timeout=bound_s) == 0, log.read_text()[-3000:]


def reach(driver, run, log, *, attempt, step):
    """Waits until the run has logged this step, or a later one, in this attempt."""

    def arrived():
        return driver.poll() is not None or helpers.progress(run) >= (attempt, step)

    helpers.wait_until(arrived, bound_s=300, what=f"step {step} in attempt {attempt}; {log}")
    assert driver.poll() is None, log.read_text()[-3000:]


def final_weights(run):
    folder = run / "checkpoints" / checkpoint.name(STEPS)
    return dict(shards.tensors(folder))


@pytest.fixture(scope="module")
def undisturbed(recipe, storage):
    log = storage / "undisturbed.log"
    finish(helpers.start_driver(recipe, "ray.name=undisturbed", log=log), log, 600)
    run = storage / "undisturbed"
    assert len(helpers.curve(run)) == STEPS
    return run


def assert_same_run(run, undisturbed):
    assert helpers.curve(run) == helpers.curve(undisturbed)
    expected = final_weights(undisturbed)
    for name, tensor in final_weights(run).items():
        assert torch.equal(tensor, expected[name]), name


def test_ten_killed_workers(recipe, storage, undisturbed):
    draw = random.Random(SEED)
    targets = sorted(draw.sample(range(2, STEPS - 1), KILLS))
    run, log = storage / "killed", storage / "killed.log"
    driver = helpers.start_driver(recipe, "ray.name=killed", "ray.standby=true", log=log)
    try:
        for number, target in enumerate(targets, start=1):
            reach(driver, run, log, attempt=number, step=target)
            helpers.kill_worker(run, draw.randrange(2))
        finish(driver, log, 400)
    finally:
        driver.kill()
    assert helpers.progress(run)[0] == KILLS + 1, "every kill must have cost an attempt"
    assert_same_run(run, undisturbed)


def test_killed_drivers(recipe, storage, undisturbed):
    draw = random.Random(SEED + 1)
    run, log = storage / "driver", storage / "driver.log"
    for attempt, target in enumerate(sorted(draw.sample(range(2, STEPS - 5), 2)), start=1):
        driver = helpers.start_driver(recipe, "ray.name=driver", log=log)
        reach(driver, run, log, attempt=attempt, step=target)
        driver.kill()
        driver.wait(timeout=30)
    finish(helpers.start_driver(recipe, "ray.name=driver", log=log), log, 600)
    assert helpers.progress(run)[0] == 3
    assert_same_run(run, undisturbed)


def test_the_finished_run_does_not_train_again(recipe, storage, undisturbed):
    before = helpers.curve(undisturbed)
    log = storage / "again.log"
    finish(helpers.start_driver(recipe, "ray.name=undisturbed", log=log), log, 300)
    assert "done before" in log.read_text()
    assert helpers.curve(undisturbed) == before


@pytest.mark.extended
def test_a_range_of_workers_takes_what_the_cluster_holds_and_goes_on(recipe, storage, undisturbed):
    log, run = storage / "range.log", storage / "range"
    driver = helpers.start_driver(recipe, "ray.name=range", "ray.num_workers=1", log=log)
    reach(driver, run, log, attempt=1, step=20)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=300) == 1, log.read_text()[-3000:]
    finish(helpers.start_driver(recipe, "ray.name=range", "ray.num_workers=[1, 2]", log=log), log, 600)
    assert "was written by 1 workers and is taken up by 2" in log.read_text()
    expected = {step: float.fromhex(loss) for step, loss, _ in helpers.curve(undisturbed)}
    got = {step: float.fromhex(loss) for step, loss, _ in helpers.curve(run)}
    assert got == pytest.approx(expected, rel=1e-5)


def test_more_workers_than_the_cluster_holds_is_a_user_error(recipe, storage):
    log = storage / "large.log"
    driver = helpers.start_driver(recipe, "ray.name=large", "ray.num_workers=2000", log=log)
    assert driver.wait(timeout=240) == 2
    text = log.read_text()
    for words in ("ray.num_workers=2000", "no autoscaler", "fix:"):
        assert words in text
