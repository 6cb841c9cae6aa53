"""`deepspeed: auto`: before a run starts, the plan names the file of deepspeed_configs that it trains under.

A run keeps what was chosen first: its checkpoints are cut by that ZeRO stage. The name is printed, and stands in the
run folder's config.yaml.
"""

from __future__ import annotations

from collections.abc import Callable

import yaml

import deepspeed_configs
from fulltune.config import RunConfig
from fulltune.plan.planner import Options, Plan, gb
from ray_jobs.plan import USUAL
from tasks.base import UserError


def decided(run: RunConfig, nodes: Options = USUAL, *, fetch: bool, say: Callable[[str], None]) -> RunConfig:
    """The run with `deepspeed: auto` replaced by a file's name; any other run as it is.

    Args:
        nodes: what the plan takes the nodes for.
        fetch: config.json, tokenizer and data may come from the network.

    Raises:
        UserError: the plan lacks something, for example the type of GPU.
    """
    if run.deepspeed != deepspeed_configs.AUTO:
        return run
    name = _recorded(run)
    if name is not None:
        say(f"deepspeed: {name}, chosen when the run began")
        return run.model_copy(update={"deepspeed": name})
    found = _plan(run, nodes, fetch)
    say(f"deepspeed: auto is {found.config.deepspeed}: {_reason(found)}")
    return run.model_copy(update={"deepspeed": found.config.deepspeed})


def _recorded(run: RunConfig) -> str | None:
    file = run.run_dir / "config.yaml"
    named = yaml.safe_load(file.read_text())["deepspeed"] if file.exists() else None
    return named if isinstance(named, str) and named != deepspeed_configs.AUTO else None


def _plan(run: RunConfig, nodes: Options, fetch: bool) -> Plan:
    from ray_jobs.plan import plan

    try:
        return plan(run, nodes, fetch=fetch, say=lambda _: None)
    except UserError as error:
        raise UserError(
            got=f"deepspeed: auto, and no plan: {error.got}",
            wanted="a model, data and ray.accelerator_type that the plan knows",
            fix="set ray.accelerator_type, or name a file yourself, for example deepspeed=zero3",
        ) from None


def _reason(found: Plan) -> str:
    """Why this one, in figures."""
    if found.gpu is None:
        return "on CPU workers the plan has no faster one"
    need = f"planned {gb(found.memory.gpu.total)} of {gb(found.gpu.memory)} per {found.gpu.name}"
    return f"the fastest that fits, {need}" if found.fits else f"none fits, this one needs least; {need}"
