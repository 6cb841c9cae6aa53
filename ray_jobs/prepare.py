"""`fulltune prepare`: everything a run needs before workers start, in folders that every node sees.

records -> tokenizer + model folder (vocabulary grown) -> token tables -> Inputs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tasks
from fulltune import data, model
from fulltune import tokenizer as tok
from fulltune.config import RunConfig
from tasks.base import Record, Task
from tasks.sources import load_with_report

if TYPE_CHECKING:
    from fulltune.session import Inputs


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that is ready to start."""

    task: Task
    inputs: Inputs
    manifests: dict[str, dict[str, object]]


def task_of(config: RunConfig) -> Task:
    """The run's task under its options."""
    return tasks.get(config.task, **config.task_options)


def load_split(
    config: RunConfig, task: Task, split: str, limit: int | None, say: Callable[[str], None]
) -> list[Record]:
    """Records of a split; rows the task rejects are said."""
    loaded = load_with_report(task, split, config.data.source, columns=config.data.columns or None, limit=limit)
    if loaded.report.rejected:
        say(f"{split}: {len(loaded.report.rejected)} rows rejected by task {task.name}")
    return loaded.records


def prepare(config: RunConfig, *, say: Callable[[str], None]) -> Prepared:
    """Tokenises, builds the starting model, and says what was kept and what was left out."""
    from fulltune.session import Inputs  # torch and DeepSpeed, which a plan of the same rows does without

    task = task_of(config)
    cache = config.run_dir.parent / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    records = load_split(config, task, "train", config.data.limit, say)
    texts = [plain_text(task, record) for record in records] if config.model.tokenizer else []
    model_dir = model.prepare(config.model, task, texts, seed=config.train.seed, cache=cache)
    tokenizer = tok.load(str(model_dir))
    train = data.prepare(task, records, tokenizer, config.data, split="train", cache=cache)
    say(describe("train", train))
    valid = _validation(config, task, tokenizer, cache, say)
    manifests = {"train": train.manifest} | ({"valid": valid.manifest} if valid else {})
    inputs = Inputs(
        model=model_dir, train_data=train.folder, valid_data=valid.folder if valid else None, run=config.run_dir
    )
    return Prepared(task=task, inputs=inputs, manifests=manifests)


def plain_text(task: Task, record: Record) -> str:
    """The training text as the tokenizer will see it, without the special tokens that are added later."""
    text = "".join(task.encode_text(segment.text) for segment in task.render(record))
    for token in task.special_tokens:
        text = text.replace(token, " ")
    return text


def _validation(
    config: RunConfig, task: Task, tokenizer: tok.Tokenizer, cache: Path, say: Callable[[str], None]
) -> data.TokenTable | None:
    if config.validation.every_steps is None:
        return None
    records = load_split(config, task, "valid", config.validation.limit, say)
    table = data.prepare(task, records, tokenizer, config.data, split="valid", cache=cache)
    say(describe("valid", table))
    return table


def describe(split: str, table: data.TokenTable) -> str:
    """One line on what was kept and what was left out."""
    facts = table.manifest
    line = (
        f"{split}: {facts['rows']:,} examples, {facts['tokens']:,} tokens, "
        f"{facts['supervised_tokens'] / facts['tokens']:.0%} supervised, longest {facts['longest']}"
    )
    if facts["too_long"]:
        line += f"; left out {len(facts['too_long'])} rows over data.max_length ({table.folder / 'manifest.json'})"
    if facts["without_loss"]:
        line += f"; left out {len(facts['without_loss'])} rows without a supervised token"
    return line
