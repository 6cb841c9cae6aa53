"""Bytes of the model states on one worker: weights, gradients, master weights, Adam moments, by ZeRO stage.

Follows what DeepSpeed 0.19 allocates (runtime/zero/stage_1_and_2.py, stage3.py), which is a little more than the ZeRO
paper's formulas: stages 1 to 3 keep a master copy even in float32, and a gradient that straddles a partition is kept
whole by both its owners. `benchmarks/plan_memory.py` holds these numbers against tensors counted in live engines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from fulltune.plan.shape import ModelShape
from fulltune.plan.sharding import Sharding

FP32 = 4


@dataclass(frozen=True, slots=True)
class States:
    """Bytes per worker while the forward pass of a later micro-batch runs (all states exist, gradients accumulated).

    Attributes:
        parameters: weights in the training dtype; under stage 3 the shard and what persists whole.
        master: float32 copy that the optimizer updates.
        moments: Adam's two running averages, float32.
        update: what the optimizer step needs on the device for a moment, when activations are gone.
        host: master weights, moments, gradients and buffers that live in host memory.
        nvme: the same on local disk.
    """

    parameters: int
    gradients: int
    master: int
    moments: int
    update: int = 0
    host: int = 0
    nvme: int = 0

    @property
    def optimizer(self) -> int:
        return self.master + self.moments

    @property
    def device(self) -> int:
        return self.parameters + self.gradients + self.optimizer


@lru_cache(maxsize=256)
def states(shape: ModelShape, sharding: Sharding, *, workers: int, dtype_bytes: int, decay_groups: bool) -> States:
    """The states of the worker that holds most.

    Args:
        dtype_bytes: of the weights: 2 for bf16 and fp16, 4 for float32.
        decay_groups: matrices and vectors are optimised as two groups (train.weight_decay > 0).
    """
    groups = parameter_groups(shape, decay_groups=decay_groups)
    if sharding.stage == 0:
        return _unsharded(shape.parameters, dtype_bytes)
    if sharding.stage == 3:
        return _stage_3(shape, sharding, groups, workers, dtype_bytes)
    return _stage_1_and_2(shape, sharding, groups, workers, dtype_bytes)


def parameter_groups(shape: ModelShape, *, decay_groups: bool) -> list[list[int]]:
    """Sizes of the parameters in the groups that the optimizer gets (`fulltune.engine.core.parameter_groups`)."""
    sizes = [(math.prod(size), len(size)) for _, size in shape.tensors]
    if not decay_groups:
        return [[count for count, _ in sizes]]
    return [[count for count, rank in sizes if rank > 1], [count for count, rank in sizes if rank <= 1]]


def _unsharded(parameters: int, e: int) -> States:
    """Stage 0: everything whole. In float32 the weights are their own master copy."""
    mixed = e != FP32
    return States(
        parameters=e * parameters,
        gradients=e * parameters,
        master=FP32 * parameters if mixed else 0,
        moments=2 * FP32 * parameters,
        update=FP32 * parameters if mixed else 0,
    )


def _stage_1_and_2(
    shape: ModelShape, sharding: Sharding, groups: Sequence[Sequence[int]], workers: int, e: int
) -> States:
    parts = [partition(sum(group), workers) for group in groups]
    owned, whole = sum(parts), workers * sum(parts)
    held = _gradients_held(groups, workers) if sharding.stage == 2 else shape.parameters
    if sharding.offload_optimizer == "none":
        # the partition is flattened in its own dtype and once more in float32, group by group
        update = max(parts) * (FP32 + (e if e != FP32 else 0))
        return States(e * whole, e * held, FP32 * owned, 2 * FP32 * owned, update=update)
    # gradients leave for the host one by one, through a buffer of the largest parameter; the host keeps them in
    # both dtypes, and a copy of the weights on their way back
    buffer = e * shape.largest_tensor
    accumulated = e * _gradients_held(groups, workers)
    host = (FP32 + 2 * FP32 + FP32 + e) * owned + accumulated + buffer
    return States(e * whole, buffer if sharding.stage == 2 else e * shape.parameters, 0, 0, host=host)


def _stage_3(shape: ModelShape, sharding: Sharding, groups: Sequence[Sequence[int]], workers: int, e: int) -> States:
    sizes = [size for group in groups for size in group]
    owned = sum(math.ceil(size / workers) for size in sizes)
    # what persists stays gathered beside its shard; a single worker's shard is the whole
    persistent = sum(size for size in sizes if size <= sharding.persistence_threshold) if workers > 1 else 0
    secondary = e * _second_copy(sizes, sharding.hpz_partition, workers) if sharding.hpz_partition > 1 else 0
    mixed = e != FP32
    optimizer_stays = sharding.offload_optimizer == "none"
    step = min(sharding.sub_group, owned)
    weights = e * owned if sharding.offload_param == "none" else 0
    on_host, on_disk = _moved(sharding, owned, e)
    return States(
        parameters=weights + e * persistent + secondary,
        gradients=e * owned if optimizer_stays else 0,
        master=FP32 * owned if optimizer_stays else 0,
        moments=2 * FP32 * owned if optimizer_stays else 0,
        update=step * (FP32 + (e if mixed else 0)) if optimizer_stays else 0,
        host=on_host,
        nvme=on_disk,
    )


def _second_copy(sizes: Sequence[int], partition: int, workers: int) -> int:
    """Elements of hpZ's second copy on a worker. Its group is the partition, or all workers where they are fewer, and
    each parameter is padded to a multiple of the workers, as its shard is.
    """
    return sum(math.ceil(size / workers) * workers // min(partition, workers) for size in sizes)


def _moved(sharding: Sharding, owned: int, e: int) -> tuple[int, int]:
    """Bytes on host and on NVMe under stage 3: master, moments, float32 gradients; gradients; weights."""
    host = nvme = 0
    optimizer = (FP32 + 2 * FP32 + FP32) * owned
    if sharding.offload_optimizer == "cpu":
        host += optimizer + e * owned
    elif sharding.offload_optimizer == "nvme":
        nvme += optimizer
        # the step swaps sub-groups through pinned buffers: four tensors, two in flight
        host += e * owned + 2 * 4 * FP32 * min(sharding.sub_group, owned)
    if sharding.offload_param == "cpu":
        host += e * owned
    elif sharding.offload_param == "nvme":
        nvme += e * owned
    return host, nvme


def partition(count: int, workers: int) -> int:
    """Elements per worker of a flattened group; DeepSpeed aligns partitions to two elements."""
    return 2 * math.ceil(count / (2 * workers))


def _gradients_held(groups: Sequence[Sequence[int]], workers: int) -> int:
    """Elements of the gradients that the fullest worker keeps: parameters that touch its partition, whole."""
    return max(sum(_touching(group, worker, partition(sum(group), workers)) for group in groups)
               for worker in range(workers))  # fmt: skip


def _touching(group: Sequence[int], worker: int, size: int) -> int:
    start, end, at, held = worker * size, (worker + 1) * size, 0, 0
    for count in group:
        if at < end and at + count > start:
            held += count
        at += count
    return held
