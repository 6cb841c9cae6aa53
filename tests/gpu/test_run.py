"""A run on a GPU: it resumes to the last bit, its MFU is a number, and its peak memory is the planned one."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from fulltune import config, data, device, meter, metrics
from fulltune.plan import hardware, memory, planner, shape, workload

REHEARSAL = os.environ.get("FULLTUNE_REHEARSE_GPU") == "1"  # tests/gpu/conftest.py
BF16 = {"model__dtype": "bfloat16", "deepspeed": "zero2", "train__max_steps": 8, "checkpoint__every_steps": 5}


def curve(folder):
    return [
        (r["step"], float(r["loss"]).hex(), float(r["grad_norm"]).hex()) for r in metrics.read(folder) if "loss" in r
    ]


@pytest.fixture(scope="module")
def whole(launch, tiny, tmp_path_factory):
    """A run of 8 steps with a checkpoint after 5."""
    folder = tmp_path_factory.mktemp("whole")
    assert launch("run", 1, tiny, changes=BF16, out=folder)[0]["finished"]
    return folder


def test_resuming_is_exact_under_the_deterministic_setting(launch, tiny, whole, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-00000008")
    (cut / "checkpoints" / "pointer.json").write_text('{"step": 5}')
    (found,) = launch("run", 1, tiny, changes=BF16, out=cut)
    assert found["said"] == ["resuming after step 5"]
    assert curve(cut) == curve(whole)
    assert [record["attempt"] for record in metrics.read(cut)] == [1] * 5 + [2] * 3


def test_mfu_is_measured_where_the_peak_is_known_and_null_elsewhere(whole):
    steps = [record for record in metrics.read(whole) if "loss" in record]
    assert all(record["tokens_per_s"] > 0 for record in steps)
    name = None if REHEARSAL else device.gpu_name(torch.device("cuda", 0))
    known = name is not None and meter.gpu_of(name) is not None
    assert all(0 < record["mfu"] < 1 if known else record["mfu"] is None for record in steps)


@pytest.mark.skipif(REHEARSAL, reason="nobody counts peak bytes on a CPU")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("file", ["zero2", "zero3"])
def test_peak_memory_is_the_planned_one(launch, wide, file, checkpointing):
    """Within 15 % of the tensors that the plan counts; the allowance for CUDA and fragmentation is not part of it."""
    changes = {"model__dtype": "bfloat16", "deepspeed": file, "train__gradient_checkpointing": checkpointing}
    (found,) = launch("losses", 1, wide, changes=changes, steps=3)
    tree = json.loads(json.dumps(wide.base)) | {"deepspeed": file}
    tree["model"]["dtype"], tree["train"]["gradient_checkpointing"] = "bfloat16", checkpointing
    tree["ray"] |= {"use_gpu": True, "accelerator_type": "A100"}  # the type does not matter for bytes
    run = config.resolve(tree, origin="test")
    table = data.TokenTable(wide.tokens)
    lengths = workload.Lengths(table.lengths, table.supervised, "counted", known=True)
    built = shape.of(json.loads((wide.model / "config.json").read_text()))
    made = planner.setup(run, built, workload.workload(run, lengths), hardware.gpu("A100"))
    assert found["peak"] == pytest.approx(memory.memory(made).tensors, rel=0.15)
