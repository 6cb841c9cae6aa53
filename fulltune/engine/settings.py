"""The DeepSpeed configuration of a run: a shipped file, a path or a mapping, completed with what the run decides.

DeepSpeed's own keys stay DeepSpeed's. fulltune fills in dtype, batch arithmetic and clipping, and refuses a file that
contradicts the recipe, so that no number has two homes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import deepspeed_configs
from fulltune import device
from fulltune.config import RunConfig
from tasks.base import UserError

OWNED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
)


def base(config: RunConfig) -> dict[str, Any]:
    """The configuration as it was named: shipped, a file, or inline.

    Raises:
        UserError: no such file or name, or a key that the recipe owns.
    """
    named = config.deepspeed
    settings = dict(named) if isinstance(named, dict) else _read(named)
    taken = [key for key in OWNED if key in settings]
    if taken:
        raise UserError(
            got=f"deepspeed sets {', '.join(taken)}",
            wanted="a file without keys that the recipe decides",
            fix="use model.dtype, train.global_batch_size, train.micro_batch_tokens and train.max_grad_norm instead",
        )
    return settings


def _read(named: str) -> dict[str, Any]:
    if not named.endswith(".json"):
        try:
            return deepspeed_configs.load(named)
        except LookupError as error:
            raise UserError(
                got=f"deepspeed: {named!r}",
                wanted=f"one of {', '.join(deepspeed_configs.names())}, a path ending in .json, or a mapping",
                fix=str(error.args[0]),
            ) from None
    try:
        settings = json.loads(Path(named).expanduser().read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            got=f"deepspeed: {named}: {error}", wanted="a readable JSON file", fix="check the path and the syntax"
        ) from None
    assert isinstance(settings, dict), f"{named} holds {type(settings).__name__}, wanted an object"
    return settings


def complete(config: RunConfig, *, num_workers: int) -> dict[str, Any]:
    """What `deepspeed.initialize` gets.

    Batch keys say one sequence per pass: the packs are ours, and DeepSpeed only has to average over workers.

    Raises:
        UserError: as `base`; bfloat16 under ZeRO-0, where DeepSpeed puts an optimizer wrapper of its own between.
    """
    settings = base(config)
    dtype = device.dtype_name(config.model.dtype, use_gpu=config.ray.use_gpu)
    if dtype == "bfloat16" and stage(settings) == 0:
        raise UserError(
            got=f"ZeRO-0 with model.dtype {dtype}",
            wanted="ZeRO-1 or above for bfloat16: master weights in float32, sharded or not, under one wrapper",
            fix="deepspeed=zero1, which on one worker takes the same memory",
        )
    settings |= {
        "train_batch_size": num_workers,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
    }
    if stage(settings) > 0 or dtype != "float32":
        settings["gradient_clipping"] = config.train.max_grad_norm
    if dtype == "bfloat16":
        settings["bf16"] = {"enabled": True}
    elif dtype == "float16":
        settings["fp16"] = {"enabled": True}
    return settings


def stage(settings: dict[str, Any]) -> int:
    """The ZeRO stage, 0 where none is named."""
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def stage_of(config: RunConfig) -> int:
    """The ZeRO stage of a run."""
    return stage(base(config))


def offloads_optimizer(settings: dict[str, Any]) -> bool:
    """Whether the optimizer states live in host memory or on NVMe."""
    offload = settings.get("zero_optimization", {}).get("offload_optimizer", {})
    return str(offload.get("device", "none")) != "none"
