"""What a DeepSpeed configuration decides about memory: ZeRO stage, offload, and the sizes of its buckets.

Reads the file as DeepSpeed does, with DeepSpeed 0.19's defaults where it is silent (runtime/zero/config.py), and
without importing DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Place = Literal["none", "cpu", "nvme"]


@dataclass(frozen=True, slots=True)
class Sharding:
    """The part of `zero_optimization` that a plan needs. Sizes count elements, not bytes.

    Attributes:
        reduce_bucket: gradients that are reduced at once.
        prefetch_bucket: weights that stage 3 gathers ahead of use.
        persistence_threshold: parameters up to this size stay whole on every worker under stage 3.
        max_live: gathered weights that stage 3 keeps at most.
        sub_group: parameters whose optimizer step stage 3 takes at once.
        hpz_partition: workers that share a second copy of the weights (ZeRO++ hpZ); 1 for none.
    """

    stage: int
    offload_optimizer: Place = "none"
    offload_param: Place = "none"
    overlap_comm: bool = False
    reduce_bucket: int = 500_000_000
    prefetch_bucket: int = 50_000_000
    persistence_threshold: int = 100_000
    max_live: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    hpz_partition: int = 1

    @property
    def name(self) -> str:
        """For a table: "ZeRO-3, optimizer on cpu"."""
        moved = [("optimizer", self.offload_optimizer), ("weights", self.offload_param)]
        parts = [f"{what} on {place}" for what, place in moved if place != "none"]
        return ", ".join([f"ZeRO-{self.stage}", *parts])


def read(settings: Mapping[str, Any]) -> Sharding:
    """The sharding that a DeepSpeed configuration asks for."""
    zero = settings.get("zero_optimization", {})
    stage = int(zero.get("stage", 0))
    silent = Sharding(stage)

    def place(key: str) -> Place:
        device: Place = (zero.get(key) or {}).get("device", "none")
        return device

    def size(key: str, default: int) -> int:
        return int(zero.get(key, default))

    overlap = zero.get("overlap_comm")
    return Sharding(
        stage=stage,
        offload_optimizer=place("offload_optimizer"),
        offload_param=place("offload_param"),
        overlap_comm=stage == 3 if overlap is None else bool(overlap),
        reduce_bucket=size("reduce_bucket_size", silent.reduce_bucket),
        prefetch_bucket=size("stage3_prefetch_bucket_size", silent.prefetch_bucket),
        persistence_threshold=size("stage3_param_persistence_threshold", silent.persistence_threshold),
        max_live=size("stage3_max_live_parameters", silent.max_live),
        sub_group=size("sub_group_size", silent.sub_group),
        hpz_partition=max(1, size("zero_hpz_partition_size", silent.hpz_partition)),
    )
