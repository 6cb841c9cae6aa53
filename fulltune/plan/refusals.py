"""What the engine or DeepSpeed refuses of a recipe's own DeepSpeed file, before any byte is counted.

recipe + setup -> sentences for the plan's problems. The engine's rule is `fulltune.engine.settings.complete`; hpZ's is
DeepSpeed 0.19's `utils/groups.py`, `_create_zero_param_parallel_group`: groups of min(partition, workers), of which the
workers must be a multiple. So fewer workers than the partition are one group, and more must divide.
"""

from __future__ import annotations

import deepspeed_configs
from fulltune import device
from fulltune.config import RunConfig
from fulltune.plan.memory import Setup


def refusals(config: RunConfig, setup: Setup) -> tuple[str, ...]:
    """Why this file would not run with this dtype and these workers, one sentence each; empty if it does."""
    found = []
    dtype = device.dtype_name(config.model.dtype, use_gpu=setup.on_gpu)
    if setup.sharding.stage == 0 and dtype == "bfloat16":
        found.append(
            f"ZeRO-0 with model.dtype {dtype}, for which the engine wants ZeRO-1 or above: set deepspeed=zero1, which "
            "on one worker takes the same memory"
        )
    if setup.sharding.stage == 3 and setup.sharding.hpz_partition > 1:
        found += _uneven_groups(config, setup.sharding.hpz_partition)
    return tuple(found)


def _uneven_groups(config: RunConfig, partition: int) -> list[str]:
    low, high = config.ray.min_workers, config.ray.max_workers
    # any number of the range may come; of two above the partition one is no multiple, so that more need not be asked
    uneven = [number for number in range(low, min(high, low + partition) + 1) if number % min(partition, number)]
    if not uneven:
        return []
    had = f"{low} workers" if low == high else f"ray.num_workers [{low}, {high}], of which {uneven[0]} may come"
    named = config.deepspeed
    shipped = isinstance(named, str) and named in deepspeed_configs.names()
    way_out = f"deepspeed={str(named).replace('_hpz', '')}" if shipped else "leave it out of the file"
    return [
        f"zero_hpz_partition_size {partition} with {had}, where DeepSpeed wants at most {partition} or a multiple of "
        f"it: set ray.num_workers={high // partition * partition}, or {way_out}"
    ]
