"""Property 2: the loss of a step is the mean over its supervised tokens, however they are spread over micro-batches and
workers; and the curve is the one that plain PyTorch draws."""

from __future__ import annotations

import numpy as np
import pytest

from fulltune import batches, config, data

STAGES = [0, 1, 2, 3]


def losses(records):
    return np.array([record["loss"] for record in records])


def test_packs_hold_three_or_more_examples_and_workers_see_unequal_supervised_tokens(tiny):
    run = config.resolve(tiny.base, origin="test")
    table = data.TokenTable(tiny.tokens)
    plans = [batches.StepPlanner(table, run.train, True, rank, 2).step(1) for rank in (0, 1)]
    assert all(len(plan.micro_batches[0]) >= 3 for plan in plans)
    counts = [int(table.supervised[plan.micro_batches[0]].sum()) for plan in plans]
    assert counts[0] != counts[1]
    assert len({int(table.lengths[i]) for i in plans[0].micro_batches[0]}) >= 3


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_twenty_steps_equal_plain_adamw(matrix, plain, stage, workers):
    records = matrix.records[f"zero{stage}-{workers}w"]
    wanted = plain(20)
    curve, norms, weights = wanted.losses, wanted.norms, wanted.weights
    np.testing.assert_allclose(losses(records), curve, rtol=1e-4)
    np.testing.assert_allclose([r["grad_norm"] for r in records], norms, rtol=1e-3)
    assert curve[-1] < curve[0] - 1, "the reference itself must learn, or equality proves little"
    for name, value in matrix.weights(f"zero{stage}-{workers}w").items():
        assert (value - weights[name]).norm() <= 1e-3 * weights[name].norm(), name


@pytest.mark.parametrize("variant", ["-accumulated", "-unpacked"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_micro_batches_do_not_change_the_step(matrix, stage, workers, variant):
    whole = matrix.records[f"zero{stage}-{workers}w"][:5]
    split = matrix.records[f"zero{stage}-{workers}w{variant}"]
    assert split[0]["micro_batches"] > whole[0]["micro_batches"] == 1
    # the runs end at different steps, so only the first of them share their learning rates up to the decay's slope
    np.testing.assert_allclose(losses(split)[:3], losses(whole)[:3], rtol=1e-5)
    np.testing.assert_allclose([r["grad_norm"] for r in split][:3], [r["grad_norm"] for r in whole][:3], rtol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_workers_do_not_change_the_steps(matrix, stage):
    one, two = matrix.records[f"zero{stage}-1w"], matrix.records[f"zero{stage}-2w"]
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4)
    np.testing.assert_allclose(losses(two)[:3], losses(one)[:3], rtol=1e-6)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_follows_float32_at_its_own_precision(matrix, stage):
    for workers in (1, 2):
        half = losses(matrix.records[f"zero{stage}-{workers}w-bf16"])
        np.testing.assert_allclose(half, losses(matrix.records[f"zero{stage}-{workers}w"])[:3], rtol=2e-2)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_gradient_checkpointing_changes_memory_and_nothing_else(matrix, stage, workers):
    records = matrix.records[f"zero{stage}-{workers}w-checkpointed"]
    np.testing.assert_allclose(losses(records), losses(matrix.records[f"zero{stage}-{workers}w"])[:3], rtol=1e-6)
