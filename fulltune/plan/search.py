"""Which configuration is the fastest that fits, and what is the smallest cluster that holds the run.

Tries what a user could write into the recipe: the shipped shardings, checkpointing, and micro-batches by powers of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import deepspeed_configs
from fulltune.config import RunConfig
from fulltune.plan import memory as planned
from fulltune.plan import sharding, time, workload
from fulltune.plan.hardware import Gpu
from fulltune.plan.memory import Memory, Setup
from fulltune.plan.states import FP32
from fulltune.plan.workload import Lengths, Workload

# without NVMe, which needs a folder on a fast local disk that a plan cannot know
SCHEMES = tuple(scheme for scheme in deepspeed_configs.SCHEMES if scheme != "zero3_nvme")
MICRO_BATCHES = tuple(2**power for power in range(9, 16))  # 512 to 32,768 tokens
# plans this much slower than the fastest are as fast: half of the published rows are predicted no better (3.3 %,
# docs/planning_evidence.md)
AS_FAST = 1.05
OWN = "the recipe's own"  # in a choice: the sharding that the recipe names
SPARE = 0.10  # of a GPU's memory, kept free where a choice as fast allows it
CLUSTERS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True, slots=True)
class Choice:
    """A configuration that fits.

    Attributes:
        deepspeed: the shipped file.
        micro_batches: per worker and step, on average.
        step_seconds: planned.
        host_bytes: of a node's memory, at the moment that needs most.
    """

    deepspeed: str
    workers: int
    micro_batch_tokens: int
    micro_batches: float
    gradient_checkpointing: bool
    step_seconds: float
    gpu_bytes: int
    host_bytes: int


def fits(found: Memory, gpu: Gpu, host_memory: int) -> bool:
    """Whether the GPU holds its part, and what Ray leaves of a node's memory what is offloaded, loaded and saved."""
    return found.gpu.total <= gpu.memory and found.host_peak <= planned.usable(host_memory)


def fastest(config: RunConfig, setup: Setup, lengths: Lengths, gpu: Gpu, host_memory: int) -> Choice | None:
    """The fastest configuration that fits on `setup.workers` GPUs, as `preferred` has it; None where none does."""
    return preferred(_choices(config, setup, lengths, gpu, host_memory), gpu)


def preferred(choices: Iterable[Choice], gpu: Gpu) -> Choice | None:
    """Of the choices that are as fast as the fastest: one that leaves room on the GPU, then the one that moves least
    off it, then fewest passes, then fewest bytes.

    A second copy of the weights (ZeRO++ hpZ) moves more than ZeRO-3: it has to be faster by more than a plan can tell.
    """
    held = list(choices)
    limit = AS_FAST * min((choice.step_seconds for choice in held), default=0.0)
    near = (choice for choice in held if choice.step_seconds <= limit)
    return min(near, key=lambda choice: _rank(choice, gpu), default=None)


def _rank(choice: Choice, gpu: Gpu) -> tuple[bool, int, float, int]:
    moved = 0 if choice.deepspeed == OWN else SCHEMES.index(deepspeed_configs.scheme(choice.deepspeed))
    return choice.gpu_bytes > (1 - SPARE) * gpu.memory, moved, choice.micro_batches, choice.gpu_bytes


def fastest_left_open(config: RunConfig, setup: Setup, lengths: Lengths, gpu: Gpu, host_memory: int) -> Choice | None:
    """The fastest of what the recipe leaves to the plan, `deepspeed: auto` and `train.micro_batch_tokens: auto`, that
    fits with the rest of it as it stands; None if none does. Its `deepspeed` is OWN where the recipe names one.
    """
    return preferred(_left_open(config, setup, lengths, gpu, host_memory), gpu)


def _left_open(config: RunConfig, setup: Setup, lengths: Lengths, gpu: Gpu, host_memory: int) -> Iterator[Choice]:
    for size in budgets(config, lengths):
        work = workload.workload(with_budget(config, size), lengths)
        tried = replace(setup, batch=work.largest)
        if config.deepspeed == deepspeed_configs.AUTO:
            yield from _shardings(tried, work, gpu, host_memory, size, elastic=_elastic(config))
        else:
            yield from _if_it_fits(tried, OWN, work, gpu, host_memory, size)


def budgets(config: RunConfig, lengths: Lengths) -> list[int]:
    """Token budgets that the recipe lets the plan choose from: its own, or powers of two that hold a whole example."""
    train, longest = config.train, workload.longest(config, lengths)
    if train.micro_batch_tokens != "auto":
        return [train.micro_batch_tokens]
    return [size for size in MICRO_BATCHES if size >= longest and config.data.packing] or [longest]


def with_budget(config: RunConfig, tokens: int) -> RunConfig:
    """The recipe with this number as `train.micro_batch_tokens`."""
    return config.model_copy(update={"train": config.train.model_copy(update={"micro_batch_tokens": tokens})})


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
            return preferred(options, gpu)
    return None


def _choices(config: RunConfig, setup: Setup, lengths: Lengths, gpu: Gpu, host_memory: int) -> Iterator[Choice]:
    longest = workload.longest(config, lengths)
    sizes = {size for size in MICRO_BATCHES if size >= longest} | {max(longest, config.train.token_budget)}
    for size in sorted(sizes):
        work = workload.workload(with_budget(config, size), lengths)
        for checkpointing in (False, True):
            tried = replace(setup, batch=work.largest, checkpointing=checkpointing)
            yield from _shardings(tried, work, gpu, host_memory, size, elastic=_elastic(config))


def _elastic(config: RunConfig) -> bool:
    """Whether the run may go on with another number of workers."""
    return config.ray.max_workers != config.ray.min_workers


def _shardings(
    setup: Setup, work: Workload, gpu: Gpu, host_memory: int, size: int, *, elastic: bool = False
) -> Iterator[Choice]:
    """What fits of the shipped shardings, with the buckets for this size of model."""
    for scheme in SCHEMES:
        name = deepspeed_configs.sized(scheme, setup.shape.hidden_size)
        tried = replace(setup, sharding=sharding.read(deepspeed_configs.load(name)))
        if runs(tried, elastic=elastic):
            yield from _if_it_fits(tried, name, work, gpu, host_memory, size)


def _if_it_fits(setup: Setup, name: str, work: Workload, gpu: Gpu, host_memory: int, size: int) -> Iterator[Choice]:
    found = planned.memory(setup)
    if fits(found, gpu, host_memory):
        yield Choice(
            deepspeed=name,
            workers=setup.workers,
            micro_batch_tokens=size,
            micro_batches=work.micro_batches,
            gradient_checkpointing=setup.checkpointing,
            step_seconds=time.step_seconds(setup, work, gpu),
            gpu_bytes=found.gpu.total,
            host_bytes=found.host_peak,
        )


def runs(setup: Setup, *, elastic: bool = False) -> bool:
    """Whether the engine takes it: ZeRO-0 is for float32, and hpZ for whole nodes, of which there are several.

    Args:
        elastic: the number of workers may change, also to one of which the nodes' GPUs are no divisor: DeepSpeed would
            end there with an assertion.
    """
    if setup.sharding.stage == 0 and setup.dtype_bytes != FP32:
        return False
    copies = setup.sharding.hpz_partition
    if copies == 1:
        return True
    return not elastic and copies == setup.workers_per_node < setup.workers and setup.workers % copies == 0
