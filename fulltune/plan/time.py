"""How long a step takes: on GPUs by the fitted throughput model, on CPUs by a measured rate.

The seam between the plan and the model: `step_seconds` is all that the rest of a plan asks for.
"""

from __future__ import annotations

from fulltune.plan import throughput
from fulltune.plan.flops import step_flops_of_sums
from fulltune.plan.hardware import Gpu
from fulltune.plan.memory import Setup
from fulltune.plan.workload import Workload

SOURCE = "docs/planning_evidence.md"
CPU_FLOPS = 40e9  # per core, useful, float32: measured with a 135M model on a 2-core virtual machine


def efficiency(setup: Setup, gpu: Gpu) -> float:
    """The share of the peak at which a plan lets matrix products run."""
    return throughput.efficiency(gpu, nodes=throughput.node_count(setup))


def step_seconds(setup: Setup, work: Workload, gpu: Gpu | None, *, cpus: float = 1.0) -> float:
    """Seconds of one optimizer step; `gpu` None for CPU workers with `cpus` cores each."""
    tokens, supervised, squares = (total / work.steps for total in (work.tokens, work.supervised, work.squares))
    if gpu is not None:
        step = throughput.planned_step(
            setup,
            gpu,
            tokens=tokens,
            supervised_tokens=supervised,
            squared_lengths=squares,
            micro_batches=work.micro_batches,
        )
        return step.total
    flops = step_flops_of_sums(
        setup.shape,
        tokens=tokens,
        squared_lengths=squares,
        supervised_tokens=supervised,
        recomputed_layers=float(setup.checkpointing),
    )
    return flops.hardware / (CPU_FLOPS * cpus * setup.workers)
