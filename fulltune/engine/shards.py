"""Reads the weights back out of a sharded checkpoint, one tensor at a time.

ZeRO checkpoints hold float32 master weights cut over the workers; DeepSpeed's lazy reader maps the files into memory
and joins a tensor only when asked. Files are pickles: call this only on a checkpoint whose hashes were verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from fulltune import quiet
from fulltune.engine.snapshot import TAG


def tensors(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every named tensor of the model in full; tied names come once each."""
    lazy: dict[str, Any]
    if any((checkpoint / TAG).glob("*zero_pp_rank_*_optim_states.pt")):
        with quiet.output():
            lazy = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=TAG, lazy_mode=True)
    else:  # ZeRO-0: the module's own state
        file = checkpoint / TAG / "mp_rank_00_model_states.pt"
        lazy = torch.load(file, map_location="cpu", mmap=True, weights_only=False)["module"]
    for name in list(lazy):
        yield name, lazy.pop(name).contiguous()
