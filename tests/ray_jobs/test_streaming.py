"""Streaming through Ray Data and Ray Train: the exact loader's losses, nothing dropped, resumed where it was."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from fulltune import metrics

# tests/ is not a package: the helpers beside this file are loaded by path
_SPEC = importlib.util.spec_from_file_location("ray_jobs_test_helpers", Path(__file__).with_name("conftest.py"))
helpers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(helpers)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROWS = 300  # the `data.limit` of the recipe: one chunk of 256 rows for one worker, 44 rows for the other


def run(recipe, storage, name, *overrides):
    log = storage / f"{name}.log"
    driver = helpers.start_driver(recipe, f"ray.name={name}", *overrides, log=log)
    assert driver.wait(timeout=400) == 0, log.read_text()[-3000:]
    return storage / name


def steps(folder):
    return [record for record in metrics.read(folder) if "loss" in record]


def test_a_step_over_all_rows_has_the_loss_of_the_exact_loader(recipe, storage):
    whole = ("train.global_batch_size=600", "train.max_steps=3", "data.packing=true")
    exact = steps(run(recipe, storage, "exact", *whole))
    folder = run(recipe, storage, "streamed", "data.loader=streaming", *whole)
    streamed = steps(folder)
    assert len(streamed) == len(exact) == 3
    for ours, theirs in zip(streamed, exact, strict=True):
        assert ours["supervised_tokens"] == theirs["supervised_tokens"]
        assert ours["tokens"] == theirs["tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert [record["epoch"] for record in streamed] == [0.0, 1.0, 2.0]
    messages = (folder / "messages.log").read_text()
    assert f"epoch 1 of the stream: {ROWS} examples, each once; left out: 0 rows" in messages


def test_a_killed_worker_resumes_the_stream_where_it_was(recipe, storage):
    small = ("data.loader=streaming", "train.max_steps=40", "data.shuffle_buffer=50")
    undisturbed = run(recipe, storage, "stream-undisturbed", *small)
    log = storage / "stream-killed.log"
    driver = helpers.start_driver(recipe, "ray.name=stream-killed", *small, log=log)
    killed = storage / "stream-killed"
    try:
        helpers.wait_until(
            lambda: driver.poll() is not None or helpers.progress(killed) >= (1, 23), bound_s=300, what="step 23"
        )
        helpers.kill_worker(killed, 1)
        assert driver.wait(timeout=300) == 0, log.read_text()[-3000:]
    finally:
        driver.kill()
    assert helpers.progress(killed)[0] == 2
    assert helpers.curve(killed) == helpers.curve(undisturbed)
    supervised = [record["supervised_tokens"] for record in steps(undisturbed)]
    epochs = [record["epoch"] for record in steps(undisturbed)]
    per_epoch = [sum(n for n, e in zip(supervised, epochs, strict=True) if e == epoch) for epoch in sorted(set(epochs))]
    assert len(per_epoch) >= 2
    assert per_epoch[0] == steps(storage / "streamed")[0]["supervised_tokens"], "an epoch holds every row once"


def test_a_stream_needs_a_cpu_of_its_own(recipe, storage):
    log = storage / "no-cpu.log"
    taken = f"ray.cpus_per_worker={(os.cpu_count() or 1) - 0.5}"
    driver = helpers.start_driver(
        recipe, "ray.name=no-cpu", "data.loader=streaming", "ray.num_workers=1", taken, log=log
    )
    assert driver.wait(timeout=200) == 2, log.read_text()[-3000:]
    assert "which leaves 0.5 CPUs" in log.read_text()
