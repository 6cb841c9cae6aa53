"""What the workers of a run tell each other outside DeepSpeed: sums, each one's findings, and that they agree.

Thin names over torch.distributed, so that the training code says what it needs and a single process needs no group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from tasks.base import UserError

Say = Callable[[str], None]  # prints a line for the user
T = TypeVar("T")


class Gathers(Protocol):
    """What can ask all workers for a value (`Workers`; `fulltune.checkpoint.Peers`)."""

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, in rank order."""


def agreed(workers: Gathers, function: Callable[[], T]) -> list[T]:
    """Every worker's result of `function`; all call it.

    Raises:
        UserError: on all workers, where it was raised on one: the others would wait for that one till a time-out.
    """
    value: T | UserError
    try:
        value = function()
    except UserError as error:
        value = error
    values = workers.gather(value)
    for one in values:
        if isinstance(one, UserError):
            raise one
    return values


class Disagreement(RuntimeError):
    """Workers hold different values of what must be one; they would wait for each other for ever."""


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

    def agree(self, values: Mapping[str, Any]) -> None:
        """Compares named values over all workers before anything depends on them; Disagreement on every worker."""
        everywhere = self.gather(dict(values))
        for name in values:
            found = [other.get(name) for other in everywhere]
            if any(value != found[0] for value in found):
                each = ", ".join(f"{value} on worker {rank}" for rank, value in enumerate(found))
                raise Disagreement(f"workers disagree on {name}: {each}")

    def bound(self, seconds: float) -> None:
        """Gives every process group this time-out: the groups that DeepSpeed makes have torch's own, half an hour."""
        if self.size > 1:
            for group in dist.distributed_c10d._world.pg_map:
                dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)

    def barrier(self) -> None:
        """Waits for all."""
        if self.size > 1:
            dist.barrier()
