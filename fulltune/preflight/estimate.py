"""Time and money of the run from the step that was measured.

Its passes are scaled by FLOPs to the data's own lengths. What they exchange does not shrink with the tokens, so that a
step takes no less than its collectives do at the rates that were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fulltune.plan import rates
from fulltune.plan.collectives import Traffic, step_traffic
from fulltune.plan.flops import step_flops_of_sums
from fulltune.plan.hardware import Gpu
from fulltune.plan.memory import Setup
from fulltune.plan.throughput import communication_time
from fulltune.plan.workload import Workload
from fulltune.preflight.network import Network


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a worst-case step of two micro-batches on one worker.

    Attributes:
        first: a pass that only accumulates.
        last: the pass that ends the step, with its reductions.
        update: the optimizer.
        squared_lengths: of the examples in one micro-batch.
    """

    tokens: int
    supervised: int
    squared_lengths: int
    first: float
    last: float
    update: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the run will take, from a measured step; start-up, validation and saving are not in it.

    Attributes:
        scaled_seconds: the measured step by FLOPs.
        communication_seconds: the collectives of an average step alone.
        bound_by: which of the two the step is: "compute" or "communication".
    """

    step_seconds: float
    scaled_seconds: float
    communication_seconds: float
    bound_by: str
    tokens_per_s: float
    steps: int
    hours: float
    cost_usd: float | None
    planned_hours: float

    def as_json(self) -> dict[str, Any]:
        """As it is recorded."""
        return asdict(self)


def slowest(timings: Mapping[int, Timing]) -> Timing:
    """The worker that the others wait for."""
    return max(timings.values(), key=lambda timing: timing.first + timing.last + timing.update)


def communication_floor(
    setup: Setup, work: Workload, *, workers: int, nodes: int, network: Network | None, gpu: Gpu | None
) -> float:
    """Seconds of an average step's collectives at the measured bus bandwidths, else at the planned ones; 0 if neither.

    Gathers inside the nodes (ZeRO++ hpZ) were not measured: they count at the planned rate of the GPUs' links.

    Args:
        nodes: that the workers fill.
    """
    traffic = step_traffic(
        setup.shape,
        setup.sharding,
        workers=workers,
        micro_batches=work.micro_batches,
        dtype_bytes=setup.dtype_bytes,
    )
    if network is None:
        if gpu is None:
            return 0.0
        return communication_time(traffic, gpu, gpus=workers, nodes=nodes, node_rate=gpu.network_bandwidth)
    reduced = Traffic(all_reduce=traffic.all_reduce).sent(workers) / network.all_reduce
    gathered = Traffic(reduce_scatter=traffic.reduce_scatter, all_gather=traffic.all_gather)
    inside = Traffic(node_all_gather=traffic.node_all_gather).sent(workers) / rates.link(gpu) if gpu else 0.0
    return reduced + gathered.sent(workers) / network.all_gather + inside


def estimate(
    setup: Setup,
    work: Workload,
    timing: Timing,
    *,
    workers: int,
    planned_hours: float,
    usd_per_hour: float | None,
    floor: float = 0.0,
) -> Estimate:
    """An average step of the run.

    Args:
        floor: seconds that it takes at least, of `communication_floor`.
        workers: that trained; the plan counts with the fewest.
        usd_per_hour: of one worker.
    """
    tokens, supervised, squares = (total / work.steps for total in (work.tokens, work.supervised, work.squares))
    recomputed = float(setup.checkpointing)
    average = step_flops_of_sums(
        setup.shape,
        tokens=tokens / workers,
        squared_lengths=squares / workers,
        supervised_tokens=supervised / workers,
        recomputed_layers=recomputed,
    )
    measured = step_flops_of_sums(
        setup.shape,
        tokens=timing.tokens,
        squared_lengths=timing.squared_lengths,
        supervised_tokens=timing.supervised,
        recomputed_layers=recomputed,
    )
    part = average.hardware / measured.hardware / work.micro_batches  # of a worst-case pass
    scaled = part * ((work.micro_batches - 1) * timing.first + timing.last) + timing.update
    seconds = max(scaled, floor)
    hours = work.steps * seconds / 3600
    return Estimate(
        step_seconds=seconds,
        scaled_seconds=scaled,
        communication_seconds=floor,
        bound_by="communication" if floor > scaled else "compute",
        tokens_per_s=tokens / seconds,
        steps=work.steps,
        hours=hours,
        cost_usd=None if usd_per_hour is None else hours * workers * usd_per_hour,
        planned_hours=planned_hours,
    )
