"""Bytes that the workers exchange in an optimizer step, by ZeRO stage.

Follows what DeepSpeed 0.19 does rather than the ZeRO paper (arXiv 1910.02054, section 7), and the two differ. Stages 1
and 2 average gradients by all-reduce and keep a slice (`use_multi_rank_bucket_allreduce`), so that stage 2 moves half
again what its paper says, and again with every micro-batch. Stage 3 gathers small parameters once per step, and keeps
weights that the backward pass needs soon. `benchmarks/collective_bytes.py` holds these numbers against collectives
counted in live engines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fulltune.plan.shape import ModelShape
from fulltune.plan.sharding import Sharding

REUSE_DISTANCE = 1_000_000_000  # DeepSpeed's default of stage3_max_reuse_distance, in elements


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload of a step's collectives in bytes: whole tensors, before an algorithm splits them."""

    all_reduce: int = 0
    reduce_scatter: int = 0
    all_gather: int = 0

    @property
    def payload(self) -> int:
        return self.all_reduce + self.reduce_scatter + self.all_gather

    def sent(self, workers: int) -> float:
        """Bytes that every worker sends, and receives, under ring algorithms; an all-reduce goes round twice."""
        return (2 * self.all_reduce + self.reduce_scatter + self.all_gather) * (workers - 1) / workers

    def between_nodes(self, nodes: int) -> float:
        """Bytes that enter each node from the others, however many workers it has, and leave it too."""
        return self.sent(nodes)


def step_traffic(
    shape: ModelShape,
    sharding: Sharding,
    *,
    workers: int,
    micro_batches: int,
    dtype_bytes: int,
    reuse_distance: int = REUSE_DISTANCE,
) -> Traffic:
    """What one optimizer step exchanges; sums of single numbers (loss, norm) are left out.

    Args:
        micro_batches: forward and backward passes of each worker in the step.
        dtype_bytes: of weights and gradients; DeepSpeed reduces in the training dtype.
        reuse_distance: `stage3_max_reuse_distance` of the DeepSpeed file.
    """
    if workers == 1:
        return Traffic()
    whole = dtype_bytes * shape.parameters
    if sharding.stage == 0:
        return Traffic(all_reduce=whole)
    if sharding.stage < 3:
        return Traffic(all_reduce=whole * (micro_batches if sharding.stage == 2 else 1), all_gather=whole)
    sizes = [math.prod(size) for _, size in shape.tensors]
    persistent = sum(size for size in sizes if size <= sharding.persistence_threshold)
    gathered = sum(sizes) - persistent
    # between the two uses of a weight lies twice what stands after it; what the prefetch reaches is kept as well
    kept = min(gathered, max(reuse_distance, sharding.prefetch_bucket) // 2)
    return Traffic(
        reduce_scatter=whole * micro_batches,
        all_gather=dtype_bytes * (persistent + micro_batches * (2 * gathered - kept)),
    )
