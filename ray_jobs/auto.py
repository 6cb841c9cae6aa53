"""`deepspeed: auto` and `train.micro_batch_tokens: auto`: before a run starts, they become a file and a number.

What the run began with, or a preflight found, comes first (`settled.py`); what is left open the plan chooses. The
choice is printed, and stands in the run folder's config.yaml.
"""

from __future__ import annotations

from collections.abc import Callable

import deepspeed_configs
from fulltune.config import RunConfig
from fulltune.plan.planner import Options, Plan, gb
from ray_jobs.plan import USUAL, plan, refuse
from ray_jobs.settled import as_begun, left_open, measured
from tasks.base import UserError


def decided(
    run: RunConfig, nodes: Options = USUAL, *, fetch: bool, say: Callable[[str], None], force: bool = False
) -> RunConfig:
    """The run with every `auto` replaced; any other run as it is.

    Args:
        nodes: what the plan takes the nodes for.
        fetch: config.json, tokenizer and data may come from the network.
        force: also where by plan nothing fits.

    Raises:
        UserError: the plan lacks something, for example the type of GPU; or nothing that it may choose fits.
    """
    kept = as_begun(run, say=say)
    if not left_open(kept):
        return measured(run, kept, say=say)
    found = _plan(kept, nodes, fetch, say)
    if not force:
        refuse(found, nodes)
    if kept.deepspeed == deepspeed_configs.AUTO:
        say(f"deepspeed: auto is {found.config.deepspeed}: {_reason(found)}")
    if kept.train.micro_batch_tokens == "auto":
        passes = f"{found.work.micro_batches:.3g} per worker and step"
        say(f"train.micro_batch_tokens: auto is {found.config.train.token_budget:,} by plan, {passes}")
    return measured(run, found.config, say=say)


def _plan(run: RunConfig, nodes: Options, fetch: bool, say: Callable[[str], None]) -> Plan:
    by_file = run.deepspeed == deepspeed_configs.AUTO
    setting = "deepspeed" if by_file else "train.micro_batch_tokens"
    example = (
        "name a file yourself, for example deepspeed=zero3" if by_file else f"give a number, such as {setting}=4096"
    )
    try:
        return plan(run, nodes, fetch=fetch, say=say)
    except UserError as error:
        raise UserError(
            got=f"{setting}: auto, and no plan: {error.got}",
            wanted="a model, data and ray.accelerator_type that the plan knows",
            fix=f"set ray.accelerator_type, or {example}",
        ) from None


def _reason(found: Plan) -> str:
    """Why this one, in figures."""
    if found.gpu is None:
        return "on CPU workers the plan has no faster one"
    need = f"planned {gb(found.memory.gpu.total)} of {gb(found.gpu.memory)} per {found.gpu.name}"
    return f"the fastest that fits, {need}" if found.fits else f"none fits, this one needs least; {need}"
