"""What the workers of a run tell each other outside DeepSpeed: sums, and each one's findings.

Thin names over torch.distributed, so that the training code says what it needs and a single process needs no group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

Say = Callable[[str], None]  # prints a line for the user


@dataclass(frozen=True, slots=True)
class Workers:
    """This worker's place among the others."""

    rank: int = 0
    size: int = 1

    def sum(self, values: Sequence[float], target: torch.device | None = None) -> list[float]:
        """Element-wise sum over workers, in float64 and the same on every worker."""
        if self.size == 1:
            return [float(v) for v in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=target)
        dist.all_reduce(tensor)
        return [float(v) for v in tensor.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, in rank order, on every worker."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Waits for all."""
        if self.size > 1:
            dist.barrier()
