"""Which examples make up a step, and how they share micro-batches: numbers alone, no tensors and no torch.

seed, step -> `chosen` -> `pack` -> indices per worker and micro-batch: `fulltune.batches` trains on them, and
`fulltune.plan.workload` counts what a run will take.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np


def chosen(examples: int, batch: int, seed: int, step: int) -> np.ndarray:
    """Rows of step `step` (from 1), `batch` of so many examples at a time: each once per epoch, none dropped."""
    epoch, place = divmod(step - 1, math.ceil(examples / batch))
    return _epoch_order(examples, seed, epoch)[place * batch : (place + 1) * batch]


@lru_cache(maxsize=4)
def _epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of n examples; NumPy's Philox stream is stable across versions and platforms."""
    return np.random.Generator(np.random.Philox([seed, epoch])).permutation(n)


def pack(
    lengths: np.ndarray, chosen: Sequence[int] | np.ndarray, capacity: int, num_workers: int
) -> list[list[list[int]]]:
    """Fills micro-batches of at most `capacity` tokens, balanced over workers: result[worker][micro-batch] = indices.

    Longest first into the emptiest bin (LPT), with the fewest bins per worker that hold everything. Capacity 0 gives
    every example a micro-batch of its own. Lists may be empty where there are fewer examples than workers.
    """
    rows = np.asarray(chosen, dtype=np.int64)
    counts = np.asarray(lengths)[rows].astype(np.int64)
    order = sorted(zip((-counts).tolist(), rows.tolist(), strict=True))
    per_worker = max(
        1, math.ceil(int(counts.sum()) / (capacity * num_workers) if capacity else len(order) / num_workers)
    )
    while (bins := _fill(order, capacity, per_worker * num_workers)) is None:
        per_worker += 1
    # bins sorted by load are dealt out so that micro-batch m is of similar size on every worker
    return [[bins[m * num_workers + w] for m in range(per_worker)] for w in range(num_workers)]


def _fill(order: Sequence[tuple[int, int]], capacity: int, num_bins: int) -> list[list[int]] | None:
    """None if the examples do not fit into so many bins.

    Args:
        order: negated length and index, longest first.
    """
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    emptiest = [(0, b) for b in range(num_bins)]  # a heap of loads and bins
    full = []
    for negated, index in order:
        load, target = emptiest[0]
        bins[target].append(index)
        if not capacity:  # the bin is taken
            full.append((-negated, heapq.heappop(emptiest)[1]))
            continue
        if load - negated > capacity:
            return None
        heapq.heapreplace(emptiest, (load - negated, target))
    return [bins[b] for _, b in sorted((-load, b) for load, b in (*full, *emptiest))]
