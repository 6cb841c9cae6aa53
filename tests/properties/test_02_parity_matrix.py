"""Property 2 as a matrix: ZeRO {0, 1, 2, 3} x workers {1, 2} x accumulation {1, 4} x packing {on, off} take the steps
of plain PyTorch, with parameter groups of different weight decay and learning rate; so do offloaded optimizers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fulltune import batches, config, data

pytestmark = [pytest.mark.slow, pytest.mark.extended]
STAGES = [0, 1, 2, 3]
# examples of a step -> which cells of the matrix take such steps
EXAMPLES = {"-packed-1": 16, "-packed-4": 16, "-all-logits": 16, "-offload-1": 16, "-offload-4": 16}
EXAMPLES |= {"-bf16-4": 16, "-offload-bf16-4": 16}
BF16_LOSS = 1e-2  # 8 bits of mantissa
BF16_WAY = 0.2  # a step of AdamW is about the sign of a gradient, and small gradients change theirs


def batch_size(cell, workers):
    by_cell = {"-single-1": workers, "-single-4": 4 * workers, "-dummy": 2 * workers - 1}
    return EXAMPLES.get(cell) or by_cell[cell]


def wanted(plain, cell, workers):
    changes = {
        "train__learning_rate": 1e-3,
        "train__max_grad_norm": 0.2,
        "train__lr_multipliers": {"*embed_tokens*": 2.0, "*lm_head*": 0.5},
        "train__global_batch_size": batch_size(cell, workers),
    }
    return plain(4, **changes)


@pytest.mark.parametrize("cell", ["-packed-1", "-packed-4", "-single-1", "-single-4", "-dummy", "-all-logits"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_every_cell_takes_the_steps_of_plain_adamw(parity, plain, follows, stage, workers, cell):
    follows(parity, f"zero{stage}-{workers}w{cell}", wanted(plain, cell, workers), 1e-5)


@pytest.mark.parametrize("cell", ["-offload-1", "-offload-4"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloaded_optimizers_take_them_too(parity, plain, follows, stage, workers, cell):
    follows(parity, f"zero{stage}-{workers}w{cell}", wanted(plain, cell, workers), 1e-4)


@pytest.mark.parametrize("cell", ["-bf16-4", "-offload-bf16-4"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_accumulates_towards_the_same_place(parity, plain, tiny, stage, workers, cell):
    """The way the master weights went in four steps of four micro-batches, against float32's."""
    curve = wanted(plain, cell, workers)
    name = f"zero{stage}-{workers}w{cell}"
    assert [record["loss"] for record in parity.records[name]] == pytest.approx(list(curve.losses), rel=BF16_LOSS)
    start, after = load_file(tiny.model / "model.safetensors"), parity.weights(name)
    apart = torch.cat([(after[key] - curve.weights[key]).flatten() for key in start]).norm()
    way = torch.cat([(curve.weights[key] - start[key]).flatten() for key in start]).norm()
    assert apart / way <= BF16_WAY, float(apart / way)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_micro_batches_are_as_many_as_the_cell_says(parity, stage, workers):
    for cell, number in [("-packed-1", 1), ("-packed-4", 4), ("-single-1", 1), ("-single-4", 4), ("-offload-4", 4)]:
        if stage or "offload" not in cell:
            records = parity.records[f"zero{stage}-{workers}w{cell}"]
            assert [record["micro_batches"] for record in records] == [number] * 4, cell


def test_workers_see_unequal_supervised_tokens_and_groups_differ(tiny):
    run = config.resolve(tiny.base | {"train": tiny.base["train"] | {"global_batch_size": 16}}, origin="test")
    table = data.TokenTable(tiny.tokens)
    for number in (1, 2, 3, 4):
        plans = [batches.StepPlanner(table, run.train, True, rank, 2).step(number) for rank in (0, 1)]
        counts = [sum(int(table.supervised[micro].sum()) for micro in plan.micro_batches) for plan in plans]
        assert counts[0] != counts[1]


def test_every_step_is_clipped(plain):
    assert all(
        wanted(plain, cell, workers).norms.min() > 0.2 for cell in ("-packed-1", "-single-1") for workers in (1, 2)
    )


def test_four_parameter_groups(tiny):
    from transformers import AutoModelForCausalLM

    from fulltune.engine.core import parameter_groups

    changes = {"lr_multipliers": {"*embed_tokens*": 2.0, "*lm_head*": 0.5}}
    run = config.resolve(tiny.base | {"train": tiny.base["train"] | changes}, origin="test")
    model = AutoModelForCausalLM.from_pretrained(tiny.model)
    groups = parameter_groups(model.named_parameters(), run.train)
    assert {(g["weight_decay"], g["lr_scale"]) for g in groups} == {(0.1, 1.0), (0.1, 2.0), (0.1, 0.5), (0.0, 1.0)}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("stage", "arm"), [(stage, arm) for stage in STAGES for arm in ("", "-bf16", "-offload") if stage or not arm]
)
def test_a_skipped_step_leaves_no_trace(parity, stage, workers, arm):
    """Weights after steps 1, NaN, 3, 4 are bit for bit those after steps 1, 3, 4: nothing of step 2 is left."""
    poisoned, without = (f"zero{stage}-{workers}w{cell}" for cell in (f"-skipped{arm}", f"-without{arm}"))
    losses = [[record["loss"] for record in parity.records[name]] for name in (poisoned, without)]
    assert losses[0] == losses[1]
    assert np.isfinite(losses[0]).all()
    for name, value in parity.weights(poisoned).items():
        assert torch.equal(value, parity.weights(without)[name]), name


@pytest.mark.parametrize("workers", [1, 2])
def test_zero_3_gathers_the_head_as_often_for_chunks_as_for_all_logits(tiny, parity, workers):
    table = data.TokenTable(tiny.tokens)
    assert table.supervised.sum() / len(table) * 16 / workers > 2 * 50, "a pack must hold several chunks of 50 tokens"
    chunked, plain = (parity.records[f"zero3-{workers}w{cell}"][-1] for cell in ("-packed-1", "-all-logits"))
    assert chunked["head_gathers"] == plain["head_gathers"] > 0
