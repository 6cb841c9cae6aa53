"""Which configuration is the fastest that fits, and what is the smallest cluster that holds the run.

Tries what a user could write into the recipe: the shipped shardings, checkpointing, and micro-batches by powers of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import deepspeed_configs
from fulltune.config import RunConfig
from fulltune.plan import memory as planned
from fulltune.plan import sharding, time, workload
from fulltune.plan.hardware import Gpu
from fulltune.plan.memory import Memory, Setup
from fulltune.plan.workload import Lengths

SHARDINGS = ("zero0", "zero1", "zero2", "zero3", "zero3_offload", "zero3_offload_all")
MICRO_BATCHES = tuple(2**power for power in range(9, 16))  # 512 to 32,768 tokens
CLUSTERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Choice:
    """A configuration that fits.

    Attributes:
        deepspeed: the shipped file.
        step_seconds: planned.
    """

    deepspeed: str
    workers: int
    micro_batch_tokens: int
    gradient_checkpointing: bool
    step_seconds: float
    gpu_bytes: int
    host_bytes: int


def fits(found: Memory, gpu: Gpu, host_memory: int) -> bool:
    """Whether the GPU holds its part and a node's memory what is offloaded to it."""
    return found.gpu.total <= gpu.memory and max(found.host, found.host_loading) <= host_memory


def fastest(config: RunConfig, setup: Setup, lengths: Lengths, gpu: Gpu, host_memory: int) -> Choice | None:
    """The fastest configuration that fits on `setup.workers` GPUs; None where none does.

    Of equally fast ones, the one that leaves most memory free.
    """
    options = list(_choices(config, setup, lengths, gpu, host_memory))
    return min(options, key=lambda option: (round(option.step_seconds, 3), option.gpu_bytes), default=None)


def smallest(
    config: RunConfig, setup: Setup, lengths: Lengths, gpu: Gpu, host_memory: int, *, offload: bool
) -> Choice | None:
    """The fastest configuration on the fewest GPUs of this type, with or without host memory."""
    for workers in CLUSTERS:
        fewer = replace(setup, workers=workers, workers_per_node=min(workers, gpu.node_size))
        resized = config.model_copy(update={"ray": config.ray.model_copy(update={"num_workers": workers})})
        options = [
            option
            for option in _choices(resized, fewer, lengths, gpu, host_memory)
            if offload or "offload" not in option.deepspeed
        ]
        if options:
            return min(options, key=lambda option: option.step_seconds)
    return None


def _choices(config: RunConfig, setup: Setup, lengths: Lengths, gpu: Gpu, host_memory: int) -> Iterator[Choice]:
    longest = int(lengths.tokens[lengths.tokens <= config.data.max_length].max())
    sizes = {size for size in MICRO_BATCHES if size >= longest} | {max(longest, config.train.micro_batch_tokens)}
    for size in sorted(sizes):
        train = config.train.model_copy(update={"micro_batch_tokens": size})
        work = workload.workload(config.model_copy(update={"train": train}), lengths)
        for name in SHARDINGS:
            read = sharding.read(deepspeed_configs.load(name))
            for checkpointing in (False, True):
                tried = replace(setup, sharding=read, batch=work.largest, checkpointing=checkpointing)
                found = planned.memory(tried)
                if fits(found, gpu, host_memory):
                    seconds = time.step_seconds(tried, work, gpu)
                    yield Choice(name, setup.workers, size, checkpointing, seconds, found.gpu.total, found.host)
