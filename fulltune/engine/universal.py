"""DeepSpeed's universal checkpoint: the states of every parameter in full, which any number of workers can load.

A ZeRO checkpoint is cut for the workers that wrote it. `convert` joins the pieces, once; `Engine.load_universal` cuts
them again. Both read pickles: only on folders whose hashes were verified.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint import ds_to_universal

from fulltune import quiet
from fulltune.engine.snapshot import TAG


def convert(source: Path, out: Path) -> list[Path]:
    """Writes the universal form of the checkpoint `source` below `out`; returns the files. One process does it.

    Needs twice the size of the checkpoint on disk while it runs, and the memory of one shard.
    """
    options = Namespace(
        input_folder=str(source / TAG),
        output_folder=str(out / TAG),
        num_extract_workers=1,  # more would fork a process that has threads and perhaps a CUDA context
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # ZeRO-1 and 2: DeepSpeed does not write what its converter asks for
    )
    with quiet.output():
        ds_to_universal.main(options)
    (out / "latest_universal").unlink()  # DeepSpeed's pointer; ours is the only one
    return sorted(path for path in out.rglob("*") if path.is_file())


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The settings of every parameter group, without its parameters."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def mend(optimizer: torch.optim.Optimizer, settings: list[dict[str, Any]]) -> None:
    """Undoes what DeepSpeed 0.19.8 leaves wrong after a universal load under ZeRO-3.

    It gives every group the settings of the first one, which takes away other weight decays and learning rates, and it
    gives all parameters one and the same step counter, which then counts once per parameter group in each step.
    """
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            target = state["exp_avg"].device if on_device else torch.device("cpu")
            state["step"] = state["step"].detach().clone().to(target)
