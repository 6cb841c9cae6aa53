"""Token lengths of a recipe's training data for its plan: counted where data and tokenizer are at hand, else estimated.

A plan must be possible before anything was fetched, and before a corpus is read that no disk holds: what is missing is
assumed or sampled, and the source of the lengths says so. A command plans several times (the gates in `plan.py`, then
`auto.py`): rows are read once per process, and of a table that `prepare` left only the counts.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fulltune import mixture
from fulltune import tokenizer as tok
from fulltune.config import MixturePart, RunConfig
from fulltune.plan import workload
from fulltune.plan.workload import Lengths
from ray_jobs.prepare import load_split, source_of, task_of, tokenised_before
from ray_jobs.tokenise import Source
from tasks.base import Record, Task, UserError
from tasks.sources import fingerprint

# training splits of the published data sets in tokens of Llama-2 with the task's own: rows, mean length, standard
# deviation, supervised share; counted once on the full splits
COUNTED = {
    "viggo": (5103, 76.8, 30.0, 0.518),
    "gsm8k": (7097, 200.5, 72.6, 0.652),
    "sql_create_context": (14550, 84.4, 31.7, 0.423),
}
BYTES_PER_TOKEN = 3.0  # Llama-2's tokenizer takes 2.2 (arithmetic) to 3.6 (queries) on the tasks' texts
SAMPLE_ROWS = 2000  # of a stream, whose length is not known either
SPREAD_ROWS = 20_000  # of a source that has more of them
LARGEST_ROWS = 64  # of such a source, by their text, that are tokenised for the longest

_found: dict[str, Lengths] = {}  # in this process, by `_key`


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
    task = task_of(config)
    if config.data.source == "hub" and not os.environ.get("FULLTUNE_DATA") and not fetch:
        return _counted(config, task)
    key = _key(config, tokenizer)
    if key not in _found:
        _found[key] = _read(config, task, tokenizer, say)
    return _found[key]


def _key(config: RunConfig, tokenizer: Any | None) -> str:
    """What decides about the lengths of a source; whether the network may be asked does not."""
    settings = (config.data.loader, config.data.max_length, config.data.loss_on, str(config.run_dir.parent))
    told = None if tokenizer is None else tok.fingerprint(tokenizer)
    return repr((identity(source_of(config, "train", config.data.limit)), settings, told))


def identity(source: Source) -> str:
    """What decides within a process about the rows of a source: of files their names, sizes and times as well."""
    named = (
        source.source in ("bundled", "hub") or not Path(source.source).exists()
    )  # what is not there, its reader says
    return repr((source, None if named else fingerprint(source.open(), source.split, source.source, contents=False)))


def _read(config: RunConfig, task: Task, tokenizer: Any | None, say: Callable[[str], None]) -> Lengths:
    if config.data.loader == "streaming":
        most = min(config.data.limit or SAMPLE_ROWS, SAMPLE_ROWS)
        records = load_split(config, task, "train", most, say)
        if tokenizer is None:
            return _from_bytes(task, records)
        known = _usable(_from_tokens(config, task, tokenizer, records), config)
        source = f"sampled, the first {len(records):,} rows of {config.data.source}, a stream"
        return replace(known, source=source, known=False)
    if tokenizer is not None and (prepared := _prepared(config, tokenizer)) is not None:
        return prepared
    records, rows, largest = _records(config, task, say)

    def measured(some: list[Record]) -> Lengths:
        return _from_bytes(task, some) if tokenizer is None else _from_tokens(config, task, tokenizer, some)

    found = measured(records)
    return _spread_over(rows, found, measured(largest), config) if largest else found


def _from_tokens(config: RunConfig, task: Task, tokenizer: Any, records: list[Record]) -> Lengths:
    encoded = tok.encode_examples(
        tokenizer, task, [task.render(record) for record in records], loss_on=config.data.loss_on
    )
    tokens = np.array([len(ids) for ids, _ in encoded])
    supervised = np.array([sum(label != tok.IGNORE for label in labels[1:]) for _, labels in encoded])
    return Lengths(tokens, supervised, f"counted, {len(records):,} rows of {config.data.source}", known=True)


def _prepared(config: RunConfig, tokenizer: Any) -> Lengths | None:
    """Those of the very examples that will be trained on, where `prepare` wrote them before."""
    source, cache = source_of(config, "train", config.data.limit), config.run_dir.parent / "cache"
    table = tokenised_before(source, tokenizer, config.data, cache)
    if table is None:
        return None
    counted = f"counted, {len(table):,} prepared examples of {config.data.source}"
    return Lengths(table.lengths, table.supervised, counted, known=True)


def _records(config: RunConfig, task: Task, say: Callable[[str], None]) -> tuple[list[Record], int, list[Record]]:
    """Rows to measure, all of a source that is not large; how many usable ones it has (of a large one about); and of a
    large one those with the most text, of which one has the most tokens.
    """
    limit, lines = config.data.limit, list[str]()
    records = load_split(config, task, "train", min(limit or SPREAD_ROWS + 1, SPREAD_ROWS + 1), lines.append)
    if len(records) <= SPREAD_ROWS:
        for line in lines:
            say(line)
        return records, len(records), []
    say(f"train: over {SPREAD_ROWS:,} rows in {config.data.source}: the plan counts them, and takes the lengths of "
        f"{SPREAD_ROWS:,}, evenly spread")  # fmt: skip
    largest: list[tuple[int, int, Record]] = []  # a heap
    spread, rows = _evenly(_noting(source_of(config, "train", limit).records(), task, largest), SPREAD_ROWS)
    usable = [record for record in spread if task.accepts is None or task.accepts(record)]
    return usable, round(rows * len(usable) / len(spread)), [record for _, _, record in largest]


def _noting(records: Iterable[Record], task: Task, largest: list[tuple[int, int, Record]]) -> Iterator[Record]:
    """The records as they come; those with the most text gather in `largest`, with its characters and their number."""
    for number, record in enumerate(records):
        if task.accepts is None or task.accepts(record):
            note = (sum(len(segment.text) for segment in task.render(record)), number, record)
            (heapq.heappush if len(largest) < LARGEST_ROWS else heapq.heappushpop)(largest, note)
        yield record


def _evenly(records: Iterable[Record], wanted: int) -> tuple[list[Record], int]:
    """So many evenly spread records of all, and the number of all. One pass; at most twice as many are held."""
    kept: list[Record] = []
    step, total = 1, 0
    for total, record in enumerate(records, 1):
        if (total - 1) % step == 0:
            kept.append(record)
        if len(kept) > 2 * wanted:
            kept, step = kept[::2], 2 * step
    if len(kept) <= wanted:
        return kept, total
    return [kept[i] for i in np.linspace(0, len(kept) - 1, wanted).round().astype(int)], total


def _spread_over(rows: int, found: Lengths, largest: Lengths, config: RunConfig) -> Lengths:
    """The lengths of a sample as those of so many rows, the longest of which is among `largest`.

    Rows of the sample that are over the limit stand for others that are left out.
    """
    usable = _usable(found, config)
    examples = round(rows * len(usable.tokens) / len(found.tokens))
    source = f"{found.source.replace('counted', 'sampled')}, evenly spread among {rows:,}"
    tokens, supervised = (np.resize(counts.astype(np.int32), examples) for counts in (usable.tokens, usable.supervised))
    return Lengths(tokens, supervised, source, known=False, longest=int(largest.tokens.max()))


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
