"""DeepSpeedCPUAdam after a restart: the one thing of it that no checkpoint holds. Called by `fulltune.engine.core`.

The op keeps beta1**t and beta2**t of its bias correction in C++, as a float32 product that grows by a factor with every
step. After loading a checkpoint it sees a step that does not follow its own and takes `pow` instead, which often rounds
to another last bit (beta2 = 0.999: at steps 3, 6, and from 19 on). The weights then differ by about 1e-7 from those of
a run that was never interrupted. Read in DeepSpeed 0.19.8, `csrc/includes/cpu_adam.h`; found by
`benchmarks.kill_campaign`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def replay(optimizer: Any) -> None:
    """Takes the op through the steps that the loaded states have behind them, on one number that nobody uses.

    Any other optimizer is left alone. Costs microseconds per step.
    """
    update = getattr(getattr(optimizer, "ds_opt_adam", None), "adam_update", None)
    if update is None:
        return
    group = optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    weight, gradient, first, second = (torch.zeros(1) for _ in range(4))
    for step in range(1, steps_taken(optimizer.state.values()) + 1):
        update(optimizer.opt_id, step, 0.0, beta1, beta2, group["eps"], 0.0, True, weight, gradient, first, second)


def steps_taken(states: Iterable[dict[str, Any]]) -> int:
    """The optimizer steps that loaded states have behind them; 0 where there are none."""
    return max((int(state["step"]) for state in states if "step" in state), default=0)
