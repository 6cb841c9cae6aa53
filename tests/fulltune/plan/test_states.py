"""Model states by ZeRO stage: the closed forms, the published cases, and what offload moves."""

from __future__ import annotations

from dataclasses import replace

import pytest

import deepspeed_configs
from fulltune import architectures
from fulltune.plan import shape, sharding
from fulltune.plan.sharding import Sharding
from fulltune.plan.states import partition, states

LLAMA = {size: shape.of(architectures.load(f"llama2_{size}")) for size in ("7b", "13b", "70b")}


def of(size: str, stage: int, workers: int, dtype_bytes: int = 2, **changes):
    plain = Sharding(stage, persistence_threshold=0)
    return states(LLAMA[size], replace(plain, **changes), workers=workers, dtype_bytes=dtype_bytes, decay_groups=False)


@pytest.mark.parametrize(("size", "gigabytes"), [("7b", 6.7), ("13b", 13.0)])
def test_the_study_offloads_what_fits_on_16_gpus(size, gigabytes):
    assert of(size, 3, 16).device / 1e9 == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize(
    ("stage", "mixed", "single"),
    [
        (0, (16, 0), (16, 0)),
        (1, (4, 12), (8, 12)),  # DeepSpeed keeps a master copy in float32 as well
        (3, (0, 16), (0, 20)),
    ],
)
@pytest.mark.parametrize("workers", [1, 8, 64])
def test_closed_forms(stage, mixed, single, workers):
    count = LLAMA["7b"].parameters
    for dtype_bytes, (whole, shared) in ((2, mixed), (4, single)):
        wanted = whole * count + shared * count / workers
        assert of("7b", stage, workers, dtype_bytes).device == pytest.approx(wanted, rel=1e-6)


def test_stage_2_keeps_parameters_that_straddle_a_partition_whole():
    count = LLAMA["7b"].parameters
    held = of("7b", 2, 16).gradients
    assert 2 * count / 16 < held <= 2 * (count / 16 + 2 * LLAMA["7b"].largest_tensor)


def test_optimizer_offload_leaves_the_weights_and_fills_the_host():
    offloaded = of("70b", 3, 32, offload_optimizer="cpu")
    count = LLAMA["70b"].parameters
    assert offloaded.device == pytest.approx(2 * count / 32, rel=1e-6)
    assert offloaded.host == pytest.approx(18 * count / 32, rel=1e-6)


def test_nvme_holds_the_optimizer_and_the_host_only_its_buffers():
    offloaded = of("70b", 3, 32, offload_optimizer="nvme", offload_param="nvme")
    count = LLAMA["70b"].parameters
    assert offloaded.device == 0
    assert offloaded.nvme == pytest.approx(18 * count / 32, rel=1e-6)


@pytest.mark.parametrize(("workers", "group"), [(1, 1), (4, 4), (8, 8), (16, 8)])
def test_hpz_cuts_its_second_copy_over_the_partition_or_over_fewer_workers(workers, group):
    """DeepSpeed takes min(partition, world): 7B on 4 workers holds a quarter twice, 6.74 GB and not 5.05."""
    count = LLAMA["7b"].parameters
    weights = of("7b", 3, workers, hpz_partition=8).parameters
    assert weights == pytest.approx(2 * count / workers + 2 * count / group, rel=1e-6)


def test_hpz_pads_each_parameter_as_its_shard():
    """Three elements on two workers are four, of which each holds two, and two more as its second copy."""
    tiny = replace(LLAMA["7b"], tensors=(("a", (3,)), ("b", (5,))))
    plain = Sharding(3, persistence_threshold=0, hpz_partition=2)
    found = states(tiny, plain, workers=2, dtype_bytes=2, decay_groups=False)
    assert found.parameters == 2 * (2 + 3) + 2 * (2 + 3)


@pytest.mark.parametrize(("count", "workers", "size"), [(10, 1, 10), (10, 4, 4), (9, 2, 6), (1, 64, 2)])
def test_partitions_are_aligned_to_two_elements(count, workers, size):
    assert partition(count, workers) == size


@pytest.mark.parametrize("name", deepspeed_configs.names())
def test_every_shipped_file_is_read(name):
    settings = deepspeed_configs.load(name)
    found = sharding.read(settings)
    zero = settings["zero_optimization"]
    assert found.stage == zero["stage"]
    assert found.reduce_bucket == zero.get("reduce_bucket_size", 500_000_000)
    assert found.max_live == zero.get("stage3_max_live_parameters", 1_000_000_000)
    assert found.offload_optimizer == zero.get("offload_optimizer", {}).get("device", "none")


def test_defaults_are_deepspeeds():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    theirs, ours = DeepSpeedZeroConfig(stage=3), sharding.read({"zero_optimization": {"stage": 3}})
    assert ours.overlap_comm == theirs.overlap_comm
    assert (ours.reduce_bucket, ours.sub_group) == (theirs.reduce_bucket_size, theirs.sub_group_size)
    assert (ours.prefetch_bucket, ours.max_live) == (theirs.prefetch_bucket_size, theirs.max_live_parameters)
    assert ours.persistence_threshold == theirs.param_persistence_threshold
    assert ours.hpz_partition == theirs.zero_hpz_partition_size
