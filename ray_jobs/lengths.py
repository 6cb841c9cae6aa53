"""Token lengths of a recipe's training data for its plan: counted where data and tokenizer are at hand, else estimated.

A plan must be possible before anything was fetched, and before a corpus is read that no disk holds: what is missing is
assumed or sampled, and the source of the lengths says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fulltune import mixture
from fulltune import tokenizer as tok
from fulltune.config import MixturePart, RunConfig
from fulltune.plan import workload
from fulltune.plan.workload import Lengths
from ray_jobs.prepare import load_split, task_of
from tasks.base import Record, Task, UserError

# training splits of the published data sets in tokens of Llama-2 with the task's own: rows, mean length, standard
# deviation, supervised share; counted once on the full splits
COUNTED = {
    "viggo": (5103, 76.8, 30.0, 0.518),
    "gsm8k": (7097, 200.5, 72.6, 0.652),
    "sql_create_context": (14550, 84.4, 31.7, 0.423),
}
BYTES_PER_TOKEN = 3.0  # Llama-2's tokenizer takes 2.2 (arithmetic) to 3.6 (queries) on the tasks' texts
SAMPLE_ROWS = 2000  # of a stream, whose length is not known either


def of(config: RunConfig, tokenizer: Any | None, *, fetch: bool, say: Callable[[str], None]) -> Lengths:
    """Lengths of the examples of one epoch; of a stream those of its first rows.

    Args:
        tokenizer: the run's, with the tokens of all its tasks; None where it is not at hand.
        fetch: data may come from the network.
    """
    if not config.data.mixture:
        return _of_source(config, tokenizer, fetch, say)
    parts = [_usable(_of_source(alone(config, part), tokenizer, fetch, say), config) for part in config.data.mixture]
    taken = mixture.takes([len(part.tokens) for part in parts], config.data.mixture)
    return _mixed(parts, taken, seed=config.train.seed)


def alone(config: RunConfig, part: MixturePart) -> RunConfig:
    """The recipe with this part of its mixture as its only source (`ray_jobs.prepare.training_sources`)."""
    shared = config.task_options if part.task in (None, config.task) else {}
    data = config.data.model_copy(
        update={
            "source": part.source or config.data.source,
            "columns": part.columns,
            "limit": part.limit,
            "mixture": (),
        }
    )
    return config.model_copy(
        update={"task": part.task or config.task, "task_options": shared | part.task_options, "data": data}
    )


def _usable(found: Lengths, config: RunConfig) -> Lengths:
    """Without the rows that are known to be left out: a part's share is of what it keeps."""
    fitting = found.tokens <= config.data.max_length
    if not found.known or not fitting.any():
        return found
    return Lengths(found.tokens[fitting], found.supervised[fitting], found.source, found.known)


def _mixed(parts: Sequence[Lengths], taken: Sequence[int], *, seed: int) -> Lengths:
    rows = [mixture.pick(len(part.tokens), count, seed=seed, part=i)[:, 0]
            for i, (part, count) in enumerate(zip(parts, taken, strict=True))]  # fmt: skip
    return Lengths(
        tokens=np.concatenate([part.tokens[chosen] for part, chosen in zip(parts, rows, strict=True)]),
        supervised=np.concatenate([part.supervised[chosen] for part, chosen in zip(parts, rows, strict=True)]),
        source="a mixture: "
        + "; ".join(f"{count:,} examples {part.source}" for part, count in zip(parts, taken, strict=True)),
        known=all(part.known for part in parts),
    )


def _of_source(config: RunConfig, tokenizer: Any | None, fetch: bool, say: Callable[[str], None]) -> Lengths:
    task, limit = task_of(config), config.data.limit
    if config.data.source == "hub" and not os.environ.get("FULLTUNE_DATA") and not fetch:
        return _counted(config, task)
    streamed = config.data.loader == "streaming"
    records = load_split(config, task, "train", min(limit or SAMPLE_ROWS, SAMPLE_ROWS) if streamed else limit, say)
    if tokenizer is None:
        return _from_bytes(task, records)
    encoded = tok.encode_examples(
        tokenizer, task, [task.render(record) for record in records], loss_on=config.data.loss_on
    )
    tokens = np.array([len(ids) for ids, _ in encoded])
    supervised = np.array([sum(label != tok.IGNORE for label in labels[1:]) for _, labels in encoded])
    rows = f"{len(records):,} rows of {config.data.source}"
    if not streamed:
        return Lengths(tokens, supervised, f"counted, {rows}", known=True)
    known = _usable(Lengths(tokens, supervised, "", known=True), config)
    return Lengths(known.tokens, known.supervised, f"sampled, the first {rows}, a stream", known=False)


def _counted(config: RunConfig, task: Task) -> Lengths:
    if task.name not in COUNTED:
        raise UserError(
            got=f"data.source hub, and no figures for task {task.name!r}",
            wanted="data at hand, or a task whose published data set was counted: " + ", ".join(COUNTED),
            fix="add --fetch to read the data, set FULLTUNE_DATA, or plan with data.source=bundled",
        )
    rows, mean, spread, share = COUNTED[task.name]
    rows = min(rows, config.data.limit or rows)
    share = 1.0 if config.data.loss_on == "all" else share
    return workload.assumed(
        rows, mean, spread, share, f"assumed, the published {task.name} in Llama-2 tokens ({rows:,} rows of {mean:.0f})"
    )


def _from_bytes(task: Task, records: list[Record]) -> Lengths:
    """Lengths without a tokenizer: the texts' bytes, and one token for each special one."""
    rows = [[(_estimate(task, segment.text), segment.loss) for segment in task.render(record)] for record in records]
    tokens = np.array([1 + sum(count for count, _ in row) for row in rows])
    supervised = np.array([max(1, sum(count for count, loss in row if loss)) for row in rows])
    source = f"estimated, {BYTES_PER_TOKEN:.0f} bytes per token over {len(records):,} rows (no tokenizer at hand)"
    return Lengths(tokens, supervised, source, known=False)


def _estimate(task: Task, text: str) -> int:
    special = sum(text.count(token) for token in task.special_tokens)
    for token in task.special_tokens:
        text = text.replace(token, "")
    return special + round(len(task.encode_text(text).encode()) / BYTES_PER_TOKEN)
