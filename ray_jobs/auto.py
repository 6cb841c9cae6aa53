"""`deepspeed: auto` and `train.micro_batch_tokens: auto`: before a run starts, they become a file and a number.

The plan chooses both; a preflight of the same recipe on the real machines corrects the micro-batch. A run keeps the
file that it began with, since its checkpoints are cut by that ZeRO stage, and the micro-batch until a later preflight
says otherwise. What was chosen is printed, and stands in the run folder's config.yaml.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import yaml

import deepspeed_configs
from fulltune.config import RunConfig
from fulltune.plan import search
from fulltune.plan.planner import Options, Plan, gb
from fulltune.preflight import micro_batch
from ray_jobs.plan import USUAL
from tasks.base import UserError

PREFLIGHT = "preflight.json"  # in the run folder, by `ray_jobs.preflight`


def decided(run: RunConfig, nodes: Options = USUAL, *, fetch: bool, say: Callable[[str], None]) -> RunConfig:
    """The run with every `auto` replaced; any other run as it is.

    Args:
        nodes: what the plan takes the nodes for.
        fetch: config.json, tokenizer and data may come from the network.

    Raises:
        UserError: the plan lacks something, for example the type of GPU.
    """
    kept = as_begun(run, say=say)
    if not left_open(kept):
        return measured(run, kept, say=say)
    found = _plan(kept, nodes, fetch)
    if kept.deepspeed == deepspeed_configs.AUTO:
        say(f"deepspeed: auto is {found.config.deepspeed}: {_reason(found)}")
    if kept.train.micro_batch_tokens == "auto":
        passes = f"{found.work.micro_batches} per worker and step"
        say(f"train.micro_batch_tokens: auto is {found.config.train.token_budget:,} by plan, {passes}")
    return measured(run, found.config, say=say)


def left_open(run: RunConfig) -> bool:
    """Whether something is still `auto`."""
    return run.deepspeed == deepspeed_configs.AUTO or run.train.micro_batch_tokens == "auto"


def as_begun(run: RunConfig, *, say: Callable[[str], None]) -> RunConfig:
    """The run with what was chosen for it when it began, where it has begun."""
    file = run.run_dir / "config.yaml"
    if not left_open(run) or not file.exists():
        return run
    began: dict[str, Any] = yaml.safe_load(file.read_text())
    name, budget = began["deepspeed"], began["train"]["micro_batch_tokens"]
    if run.deepspeed == deepspeed_configs.AUTO and isinstance(name, str) and name != deepspeed_configs.AUTO:
        say(f"deepspeed: {name}, chosen when the run began")
        run = run.model_copy(update={"deepspeed": name})
    if run.train.micro_batch_tokens == "auto" and isinstance(budget, int):
        say(f"train.micro_batch_tokens: {budget:,}, as the run began")
        run = search.with_budget(run, budget)
    return run


def measured(asked: RunConfig, chosen: RunConfig, *, say: Callable[[str], None]) -> RunConfig:
    """The run with the micro-batch that its preflight corrected, where the recipe leaves it open.

    Args:
        asked, chosen: the recipe, and what became of it so far.
    """
    file = chosen.run_dir / PREFLIGHT
    if asked.train.micro_batch_tokens != "auto" or not file.exists():
        return chosen
    record = json.loads(file.read_text())["micro_batch"] or {}
    budget, made_for = record.get("chosen"), record.get("made_for")
    if budget is None or budget == chosen.train.token_budget:
        return chosen
    if made_for != micro_batch.made_for(chosen):
        say(f"{file} is of another configuration: its micro-batch is not taken; run `fulltune preflight` again")
        return chosen
    say(f"train.micro_batch_tokens: {budget:,}, as the preflight corrected it")
    return search.with_budget(chosen, budget)


def _plan(run: RunConfig, nodes: Options, fetch: bool) -> Plan:
    from ray_jobs.plan import plan

    by_file = run.deepspeed == deepspeed_configs.AUTO
    setting = "deepspeed" if by_file else "train.micro_batch_tokens"
    example = (
        "name a file yourself, for example deepspeed=zero3" if by_file else f"give a number, such as {setting}=4096"
    )
    try:
        return plan(run, nodes, fetch=fetch, say=lambda _: None)
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
