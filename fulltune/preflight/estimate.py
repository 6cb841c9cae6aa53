"""Time and money of the run from the step that was measured: its passes scaled by FLOPs to the data's own lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fulltune.plan.flops import step_flops_of_sums
from fulltune.plan.memory import Setup
from fulltune.plan.workload import Workload


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
    """What the run will take, from a measured step; start-up, validation and saving are not in it."""

    step_seconds: float
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


def estimate(
    setup: Setup, work: Workload, timing: Timing, *, workers: int, planned_hours: float, usd_per_hour: float | None
) -> Estimate:
    """An average step of the run.

    Args:
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
    seconds = part * ((work.micro_batches - 1) * timing.first + timing.last) + timing.update
    hours = work.steps * seconds / 3600
    return Estimate(
        step_seconds=seconds,
        tokens_per_s=tokens / seconds,
        steps=work.steps,
        hours=hours,
        cost_usd=None if usd_per_hour is None else hours * workers * usd_per_hour,
        planned_hours=planned_hours,
    )
