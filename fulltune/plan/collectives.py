"""Bytes that the workers exchange in an optimizer step, by ZeRO stage.

Follows what DeepSpeed 0.19 does rather than the ZeRO paper (arXiv 1910.02054, section 7), and the two differ. Stages 1
and 2 average gradients by all-reduce and keep a slice (`use_multi_rank_bucket_allreduce`), so that stage 2 moves half
again what its paper says, and again with every micro-batch. Stage 3 gathers small parameters once per step, and keeps
weights that the backward pass needs soon. `benchmarks/collective_bytes.py` holds these numbers against collectives
counted in live engines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from fulltune.plan.shape import ModelShape
from fulltune.plan.sharding import Sharding


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload of a step's collectives in bytes: whole tensors, before an algorithm splits them.

    Attributes:
        node_all_gather: gathers among the workers of one node (ZeRO++ hpZ).
    """

    all_reduce: int = 0
    reduce_scatter: int = 0
    all_gather: int = 0
    node_all_gather: int = 0

    @property
    def payload(self) -> int:
        return self.all_reduce + self.reduce_scatter + self.all_gather + self.node_all_gather

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, kind.name) - getattr(other, kind.name) for kind in fields(self)))

    def share(self, part: float) -> Traffic:
        """This part of each kind."""
        return Traffic(*(round(part * getattr(self, kind.name)) for kind in fields(self)))

    def sent(self, workers: int) -> float:
        """Bytes that every worker sends, and receives, under ring algorithms; an all-reduce goes round twice."""
        once = self.reduce_scatter + self.all_gather + self.node_all_gather
        return (2 * self.all_reduce + once) * (workers - 1) / workers

    def between_nodes(self, workers: int, nodes: int) -> float:
        """Bytes that enter each node from the others, and leave it too: what crosses one link of a ring of all workers.

        NCCL's ring passes everything but one worker's part over every link, hence into a node also what the node's
        other workers have. Only an all-reduce between two nodes goes by a tree, which exchanges the payload once.
        """
        tree = self.all_reduce if nodes == 2 else 0
        return tree + replace(self, node_all_gather=0, all_reduce=self.all_reduce - tree).sent(workers)


def step_traffic(
    shape: ModelShape,
    sharding: Sharding,
    *,
    workers: int,
    micro_batches: float,
    dtype_bytes: int,
) -> Traffic:
    """What one optimizer step exchanges; sums of single numbers (loss, norm) are left out.

    Args:
        micro_batches: forward and backward passes of each worker in the step; of several steps the mean.
        dtype_bytes: of weights and gradients; DeepSpeed reduces in the training dtype.
    """
    if workers == 1:
        return Traffic()
    sizes = [math.prod(size) for _, size in shape.tensors]
    whole = dtype_bytes * sum(sizes)
    if sharding.stage == 0:
        return Traffic(all_reduce=whole)
    if sharding.stage < 3:
        return Traffic(all_reduce=round(whole * (micro_batches if sharding.stage == 2 else 1)), all_gather=whole)
    persistent = sum(size for size in sizes if size <= sharding.persistence_threshold)
    gathered = sum(sizes) - persistent
    # between the two uses of a weight lies twice what stands after it; what the prefetch reaches is kept as well
    kept = min(gathered, max(sharding.reuse_distance, sharding.prefetch_bucket) // 2)
    gathers = round(dtype_bytes * micro_batches * (2 * gathered - kept))
    # the first forward pass after an update leaves every node a copy of its own, which all later gathers read
    local = gathers - dtype_bytes * gathered if 1 < sharding.hpz_partition < workers else 0
    return Traffic(
        reduce_scatter=round(whole * micro_batches),
        all_gather=dtype_bytes * persistent + gathers - local,
        node_all_gather=local,
    )
