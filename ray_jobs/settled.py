"""What a run's `auto` became before: in the run's own config.yaml, and in the preflight of the same configuration.

Read by `auto.py` before it asks for a plan, by the gate in `plan.py`, which must judge what will be trained, and by
preflight. A run that has saved keeps its file, as its checkpoints are cut by that ZeRO stage; it keeps its micro-batch
as long as what else decides about memory stays the same. A preflight goes before both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import deepspeed_configs
from fulltune import checkpoint
from fulltune.config import RunConfig
from fulltune.plan import search
from fulltune.preflight import micro_batch

PREFLIGHT = "preflight.json"  # in the run folder, by `ray_jobs.preflight`


def settled(run: RunConfig, *, say: Callable[[str], None]) -> RunConfig:
    """The run with all that is known of its `auto`; what is not stays open."""
    kept = as_begun(run, say=say)
    return kept if left_open(kept) else measured(run, kept, say=say)


def left_open(run: RunConfig) -> bool:
    """Whether something is still `auto`."""
    return run.deepspeed == deepspeed_configs.AUTO or run.train.micro_batch_tokens == "auto"


def as_begun(run: RunConfig, *, say: Callable[[str], None]) -> RunConfig:
    """The run with what was chosen for it when it began, where that still holds."""
    began = _began(run) if left_open(run) else None
    if began is None:
        return run
    if run.deepspeed == deepspeed_configs.AUTO and _has_saved(run):
        name = _for_these_workers(run, began)
        say(f"deepspeed: {name}, chosen when the run began")
        run = run.model_copy(update={"deepspeed": name})
    same = micro_batch.made_for(began) == micro_batch.made_for(run)
    if run.train.micro_batch_tokens == "auto" and same:
        say(f"train.micro_batch_tokens: {began.train.token_budget:,}, as the run began")
        run = search.with_budget(run, began.train.token_budget)
    return run


def _began(run: RunConfig) -> RunConfig | None:
    """The configuration that the run folder records; None where there is none, or one of another version."""
    file = run.run_dir / "config.yaml"
    if not file.exists():
        return None
    try:
        began = RunConfig.model_validate(yaml.safe_load(file.read_text()))
    except (ValidationError, yaml.YAMLError):
        return None
    return None if left_open(began) else began


def _has_saved(run: RunConfig) -> bool:
    return bool(checkpoint.published(run.run_dir / checkpoint.FOLDER))


def _for_these_workers(run: RunConfig, began: RunConfig) -> object:
    """The file as it was. ZeRO++ hpZ, which wants whole groups of workers, gives way to ZeRO-3 where their number
    changed: the same stage, and the same checkpoints.
    """
    name = began.deepspeed
    changed = run.ray.num_workers != began.ray.num_workers
    return name.replace("_hpz", "") if isinstance(name, str) and changed else name


def _record(file: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """What a preflight recorded about the micro-batch; nothing where its file was cut off."""
    try:
        found: dict[str, Any] = json.loads(file.read_text())["micro_batch"] or {}
    except (ValueError, KeyError, TypeError, OSError) as error:
        say(f"{file} cannot be read ({type(error).__name__}): its micro-batch is not taken; preflight writes it again")
        return {}
    return found


def measured(asked: RunConfig, chosen: RunConfig, *, say: Callable[[str], None]) -> RunConfig:
    """The run with the micro-batch that its preflight corrected, where the recipe leaves it open.

    Args:
        asked, chosen: the recipe, and what became of it so far.
    """
    file = chosen.run_dir / PREFLIGHT
    if asked.train.micro_batch_tokens != "auto" or not file.exists():
        return chosen
    record = _record(file, say)
    budget, made_for = record.get("chosen"), record.get("made_for")
    if budget is None or budget == chosen.train.token_budget:
        return chosen
    if made_for != micro_batch.made_for(chosen):
        say(f"{file} is of another configuration: its micro-batch is not taken; run `fulltune preflight` again")
        return chosen
    say(f"train.micro_batch_tokens: {budget:,}, as the preflight corrected it")
    return search.with_budget(chosen, budget)
