"""The plan of a run: everything `fulltune plan` prints, from the recipe, the model's config.json and token lengths.

shape -> setup -> memory, workload -> time -> Plan. No weights, no GPU, no cluster, no network, no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import deepspeed_configs
from fulltune import device
from fulltune.config import RunConfig
from fulltune.engine import settings
from fulltune.plan import hardware, memory, search, shape, sharding, time, workload
from fulltune.plan.hardware import Gpu
from fulltune.plan.memory import Memory, Setup
from fulltune.plan.refusals import refusals
from fulltune.plan.search import Choice
from fulltune.plan.states import FP32
from fulltune.plan.workload import Lengths, Workload
from tasks.base import UserError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STUDY_LENGTH = 512  # the study padded every example to its context


@dataclass(frozen=True, slots=True)
class Options:
    """What the user adds to a recipe.

    Attributes:
        gpu: a type from the table; default: ray.accelerator_type.
        usd_per_hour: per GPU, instead of ray.usd_per_gpu_hour and the table's price.
        host_memory: bytes per node, instead of the table's; on CPUs this machine's.
        gpus_per_node: instead of the usual instance's, whose network and host memory are taken in proportion.
        node_network: bytes/s into a node, instead of the usual instance's.
    """

    gpu: str | None = None
    usd_per_hour: float | None = None
    host_memory: int | None = None
    gpus_per_node: int | None = None
    node_network: float | None = None


@dataclass(frozen=True, slots=True)
class Study:
    """The configuration of Anyscale's Llama-2 study on this model and cluster: ZeRO-3, everything offloaded, padded.

    Attributes:
        states_without_offload: bytes per GPU that ZeRO-3 alone would take.
        padding: tokens computed per real token.
        step_seconds, step_seconds_without: planned, with and without offload, on real tokens.
    """

    states_without_offload: int
    fits_without_offload: bool
    host: int
    padding: float
    step_seconds: float
    step_seconds_without: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The answers.

    Attributes:
        problems: why it does not fit or run, one sentence each; empty if it does.
        checkpoints_kept: that exist at once, at most.
        validation_export: bytes of the model that the validation by `validation.metric` writes beside training; else 0.
        starting_model: bytes of the folder that `prepare` writes to the shared storage before the workers start.
        usd_per_hour: of one GPU; None where no price is known.
        best, smallest, smallest_with_offload: None on CPUs, or where nothing fits.
    """

    config: RunConfig
    setup: Setup
    memory: Memory
    work: Workload
    gpu: Gpu | None
    host_memory: int
    hours: float
    usd_per_hour: float | None
    cost_usd: float | None
    checkpoint: int
    checkpoints_kept: int
    validation_export: int
    starting_model: int
    problems: tuple[str, ...]
    best: Choice | None
    smallest: Choice | None
    smallest_with_offload: Choice | None
    study: Study | None
    assumptions: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.problems

    @property
    def disk(self) -> int:
        """Bytes of shared storage: the starting model, the checkpoints that exist at once, and the exports."""
        return self.starting_model + self.checkpoint * self.checkpoints_kept + self.exports

    @property
    def exports(self) -> int:
        """Bytes of the exported model, and of the one that is being validated."""
        return memory.export_bytes(self.setup) + self.validation_export


def plan(config: RunConfig, model_config: Mapping[str, Any], lengths: Lengths, options: Options) -> Plan:
    """Plans a run.

    Args:
        model_config: config.json of the model, with the vocabulary as it will be trained.

    Returns:
        The plan; its `config` has a file and a number where the recipe leaves them to `auto`.

    Raises:
        UserError: no such GPU type, or none named for a run on GPUs.
    """
    gpu = _gpu(config, options)
    model = shape.of(model_config)
    host_memory = gpu.node_memory if gpu else options.host_memory or _this_machine()
    recipe, config = config, _decided(config, model, lengths, gpu, host_memory)
    work = workload.workload(config, lengths)
    made = setup(config, model, work, gpu)
    found = memory.memory(made)
    seconds = time.step_seconds(made, work, gpu, cpus=config.ray.cpus_per_worker)
    hours = work.steps * seconds / 3600
    price = price_of(config, gpu, options)
    searched = (config, made, lengths, gpu, host_memory) if gpu else None
    return Plan(
        config=config,
        setup=made,
        memory=found,
        work=work,
        gpu=gpu,
        host_memory=host_memory,
        hours=hours,
        usd_per_hour=price,
        cost_usd=hours * config.ray.min_workers * price if price is not None else None,
        checkpoint=memory.checkpoint_bytes(made),
        checkpoints_kept=_checkpoints_kept(config),
        validation_export=_validation_export(config, model),
        starting_model=(FP32 if config.model.init == "random" else made.dtype_bytes) * model.parameters,
        problems=(*refusals(config, made), *_problems(found, gpu, host_memory)),
        best=search.fastest(*searched) if searched else None,
        smallest=search.smallest(*searched, offload=False) if searched else None,
        smallest_with_offload=search.smallest(*searched, offload=True) if searched else None,
        study=_study(made, work, gpu) if gpu else None,
        assumptions=(
            *_choices(recipe, config),
            *_assumptions(config, made, lengths, gpu, options),
            *_nearly_full(found, gpu),
        ),
    )


def _gpu(config: RunConfig, options: Options) -> Gpu | None:
    if not config.ray.use_gpu and options.gpu is None:
        return None
    name = options.gpu or config.ray.accelerator_type
    if name is None:
        raise UserError(
            got="ray.use_gpu without ray.accelerator_type",
            wanted="the type of GPU to plan for",
            fix=f"add --gpu NAME, one of {', '.join(row.name for row in hardware.GPUS)}",
        )
    return _on_nodes(hardware.gpu(name), options)


def _on_nodes(row: Gpu, options: Options) -> Gpu:
    """The row with the nodes that were given. Of nodes with more or fewer GPUs than the usual instance, what was not
    given grows or shrinks with them: clouds sell such instances with about that part of network and host memory.
    """
    size = options.gpus_per_node or row.node_size
    share = size / row.node_size
    return replace(
        row,
        node_size=size,
        network_bandwidth=options.node_network or share * row.network_bandwidth,
        node_memory=options.host_memory or int(share * row.node_memory),
    )


def _decided(
    config: RunConfig, model: shape.ModelShape, lengths: Lengths, gpu: Gpu | None, host_memory: int
) -> RunConfig:
    """`deepspeed: auto` and `train.micro_batch_tokens: auto` become the fastest shipped file and micro-batch that fit
    together; where none does, those that need least.
    """
    file_open = config.deepspeed == deepspeed_configs.AUTO
    if not file_open and config.train.micro_batch_tokens != "auto":
        return config
    if gpu is None:
        return _decided_for_cpus(config, model, lengths, host_memory)
    least = search.with_budget(config, search.budgets(config, lengths)[0])
    named = least.model_copy(update={"deepspeed": "zero3"}) if file_open else least
    trial = setup(named, model, workload.workload(least, lengths), gpu)
    best = search.fastest_left_open(config, trial, lengths, gpu, host_memory)
    if best is not None:
        least = search.with_budget(config, best.micro_batch_tokens)
    if not file_open:
        return least
    name = best.deepspeed if best else deepspeed_configs.sized("zero3_offload_all", model.hidden_size)
    return least.model_copy(update={"deepspeed": name})


def _decided_for_cpus(config: RunConfig, model: shape.ModelShape, lengths: Lengths, host_memory: int) -> RunConfig:
    """On CPU workers nothing is gathered for every pass, and time is FLOPs: the fewest passes whose tensors fit."""
    if config.deepspeed == deepspeed_configs.AUTO:
        whole = device.dtype_name(config.model.dtype, use_gpu=False) == "float32"  # the engine's only one under ZeRO-0
        alone = "zero0" if whole else "zero1"
        config = config.model_copy(update={"deepspeed": alone if config.ray.max_workers == 1 else "zero2"})
    fitting = []
    for size in (sizes := search.budgets(config, lengths)):
        tried = search.with_budget(config, size)
        work = workload.workload(tried, lengths)
        if memory.memory(setup(tried, model, work, None)).host_peak <= memory.usable(host_memory):
            fitting.append((work.micro_batches, size))
    return search.with_budget(config, min(fitting)[1] if fitting else sizes[0])


def setup(config: RunConfig, model: shape.ModelShape, work: Workload, gpu: Gpu | None) -> Setup:
    """What decides about this run's memory."""
    workers = config.ray.min_workers
    dtype = device.dtype_name(config.model.dtype, use_gpu=gpu is not None)
    # as `fulltune.engine.core.loss_chunk_tokens`
    chunk = config.train.loss_chunk_tokens if model.plain_head and dtype != "float16" else 0
    return Setup(
        shape=model,
        sharding=sharding.read(settings.base(config)),
        batch=work.largest,
        workers=workers,
        dtype_bytes=BYTES[dtype],
        checkpointing=config.train.gradient_checkpointing,
        attention="segments",
        decay_groups=config.train.weight_decay > 0,
        loss_chunk=chunk,
        workers_per_node=min(workers, gpu.node_size) if gpu else workers,
        on_gpu=gpu is not None,
    )


def _checkpoints_kept(config: RunConfig) -> int:
    """The last ones, the one being written, and the best. A metric's best stays in any case, and beside it the one that
    is being validated and the one that waits for that (`fulltune.validation.Watch.wanted_steps`).
    """
    kept = config.checkpoint.keep_last + 1
    if config.validation.metric is not None:
        return kept + 3
    return kept + (1 if config.checkpoint.keep_best else 0)


def _validation_export(config: RunConfig, model: shape.ModelShape) -> int:
    """Bytes that the validation writes into a folder of its own (`ray_jobs.validate`), in its own device's dtype."""
    if config.validation.metric is None:
        return 0
    return BYTES[device.dtype_name(config.model.dtype, use_gpu=config.validation.gpus > 0)] * model.parameters


def _this_machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def price_of(config: RunConfig, gpu: Gpu | None, options: Options) -> float | None:
    """USD per GPU and hour: the user's, or the table's; None where neither is known."""
    own = options.usd_per_hour or config.ray.usd_per_gpu_hour
    return hardware.usd_per_hour(gpu.name, own) if gpu else own


def _problems(found: Memory, gpu: Gpu | None, host_memory: int) -> tuple[str, ...]:
    problems = []
    if gpu is not None and found.gpu.total > gpu.memory:
        problems.append(f"needs {gb(found.gpu.total)} per GPU, an {gpu.name} has {gb(gpu.memory)}")
    left = memory.usable(host_memory)
    for what, size in (
        ("training", found.host),
        ("loading the weights", found.host_loading),
        ("saving, which copies the states first,", found.host_saving),
    ):
        if size > left:
            problems.append(
                f"{what} needs {gb(size)} of host memory per node, Ray leaves {gb(left)} of {gb(host_memory)}"
            )
    return tuple(problems)


def _study(made: Setup, work: Workload, gpu: Gpu) -> Study:
    moved = replace(sharding.ZERO_3, offload_optimizer="cpu", offload_param="cpu")
    without, with_offload = replace(made, sharding=sharding.ZERO_3), replace(made, sharding=moved)
    resident = memory.memory(without)
    return Study(
        states_without_offload=resident.gpu.parameters + resident.gpu.gradients + resident.gpu.optimizer,
        fits_without_offload=resident.gpu.total <= gpu.memory,
        host=memory.memory(with_offload).host,
        padding=STUDY_LENGTH * work.examples * work.epochs / work.tokens,
        step_seconds=time.step_seconds(with_offload, work, gpu),
        step_seconds_without=time.step_seconds(without, work, gpu),
    )


def _choices(recipe: RunConfig, decided: RunConfig) -> list[str]:
    """What became of the recipe's `auto`."""
    found = []
    if recipe.deepspeed != decided.deepspeed:
        found.append(f"deepspeed: auto is {decided.deepspeed}")
    if recipe.train.micro_batch_tokens != decided.train.micro_batch_tokens:
        found.append(f"train.micro_batch_tokens: auto is {decided.train.token_budget:,}")
    return found


def _assumptions(config: RunConfig, made: Setup, lengths: Lengths, gpu: Gpu | None, options: Options) -> list[str]:
    found = [f"tokens: {lengths.source}"]
    if not lengths.known:
        longest = workload.longest(config, lengths)
        found.append(
            f"micro-batches: row lengths are not known, so that the longest counts as data.max_length, {longest}"
        )
    if gpu is None:
        found.append(f"memory: all {made.workers} workers on one machine, tensors only; processes at 2 GiB each")
        found.append(f"time: planned at {time.CPU_FLOPS / 1e9:.0f} GFLOP/s per core")
        return found
    found.append("memory: attention per segment with PyTorch's kernels; FlashAttention's own kernel takes less")
    found.append(
        f"memory: {gb(memory.CONTEXT)} for CUDA and NCCL, {memory.FRAGMENTATION:.0%} of temporary tensors for "
        f"fragmentation; {gpu.name} with {gb(gpu.memory)} usable ({gpu.source})"
    )
    peak = f"{gpu.peak(made.dtype_bytes) / 1e12:g} TFLOP/s, the peak "
    peak += f"in float32 ({hardware.FP32_SOURCE})" if made.dtype_bytes == FP32 else "of the 16-bit types"
    found.append(
        f"time: matrix products at {time.efficiency(made, gpu):.0%} of {peak}, and memory "
        f"traffic, or the network, whichever is slower ({time.SOURCE}); start-up, validation, checkpoints not counted"
    )
    own, listed = options.usd_per_hour or config.ray.usd_per_gpu_hour, hardware.price(gpu.name)
    if own is not None:
        found.append(f"cost: ${own:.3f} per GPU-hour, as given")
    elif listed is not None:
        found.append(f"cost: ${listed.usd_per_hour:.3f} per GPU-hour, {listed.date}, {listed.source}")
    else:
        found.append(f"cost: no sourced price for {gpu.name}; give one with --price or ray.usd_per_gpu_hour")
    usual = hardware.gpu(gpu.name).node_size
    part = "" if gpu.node_size == usual else f" with {usual} GPU(s), times {gpu.node_size}/{usual}"
    found.append(
        f"nodes: {gpu.node_size} GPU(s), {gb(gpu.node_memory)} of host memory, "
        f"{gpu.network_bandwidth * 8 / 1e9:g} Gbit/s each; where not given, the usual instance's{part}"
    )
    return found


def _nearly_full(found: Memory, gpu: Gpu | None) -> list[str]:
    """What a GPU without room to spare may cost in time, which no plan foresees."""
    if gpu is None or not (1 - search.SPARE) * gpu.memory < found.gpu.total <= gpu.memory:
        return []
    return [
        f"memory: {found.gpu.total / gpu.memory:.0%} of the GPU is taken. Where PyTorch's allocator has to make room, "
        "steps take longer than planned (7.3 s instead of 5.0 s in pytorch/pytorch issue 104509): keep a tenth free, "
        "or let fulltune preflight time a step"
    ]


def gb(count: float) -> str:
    """Bytes for people: 6.7 GB, 512 MB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
