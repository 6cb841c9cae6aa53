"""`fulltune prepare`: everything a run needs before workers start, in folders that every node sees.

source -> tokenizer + model folder (vocabulary grown) -> token tables -> Inputs
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tasks
from fulltune import data, mixture, model
from fulltune import tokenizer as tok
from fulltune.config import DataConfig, RunConfig
from ray_jobs import tokenise
from ray_jobs.tokenise import Source
from tasks.base import Record, Task
from tasks.sources import fingerprint, load_with_report, locate

# Sources of up to so many chunks are encoded in this process: that takes less time than Ray Data takes to start
HEAD_CHUNKS = 4
TOKENIZER_ROWS = 10_000  # rows of each source that a tokenizer is trained on at most

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
    """Records of a split of the recipe's own data, in memory; rows the task rejects are said."""
    loaded = load_with_report(task, split, config.data.source, columns=config.data.columns or None, limit=limit)
    if loaded.report.rejected:
        say(f"{split}: {len(loaded.report.rejected)} rows rejected by task {task.name}")
    return loaded.records


def source_of(config: RunConfig, split: str, limit: int | None) -> Source:
    """A split of the recipe's own data."""
    return Source(
        task=config.task,
        task_options=config.task_options,
        split=split,
        source=locate(task_of(config), config.data.source),
        columns=config.data.columns,
        limit=limit,
    )


def training_sources(config: RunConfig) -> list[Source]:
    """The recipe's training split, or the parts of its mixture. A part of the recipe's task has its options too."""
    if not config.data.mixture:
        return [source_of(config, "train", config.data.limit)]
    sources = []
    for part in config.data.mixture:
        shared = config.task_options if part.task in (None, config.task) else {}
        name, options = part.task or config.task, shared | part.task_options
        where = locate(tasks.get(name, **options), part.source or config.data.source)
        sources.append(Source(name, "train", where, options, part.columns, part.limit))
    return sources


def prepare(config: RunConfig, *, say: Callable[[str], None]) -> Prepared:
    """Tokenises, builds the starting model, and says what was kept and what was left out."""
    from fulltune.session import Inputs  # torch and DeepSpeed, which a plan of the same rows does without

    task = task_of(config)
    cache = config.run_dir.parent / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    sources = training_sources(config)
    others = [source.open() for source in sources if config.data.mixture]
    own_texts = texts(sources) if config.model.tokenizer else []
    model_dir = model.prepare(config.model, task, own_texts, seed=config.train.seed, cache=cache, others=others)
    reserved = tuple(token for other in (task, *others) for token in other.special_tokens)
    if config.data.loader == "streaming":
        train_data, train_facts = _stream(sources[0], model_dir, config.data, cache, say)
    else:
        train = _training_table(config, sources, model_dir, cache, reserved, say)
        train_data, train_facts = train.folder, train.manifest
    valid = None
    if config.validation.every_steps is not None:
        source = source_of(config, "valid", config.validation.limit)
        valid = tokenised(source, model_dir, config.data, cache, say=say)
        say(describe("valid", valid))
    manifests = {"train": train_facts} | ({"valid": valid.manifest} if valid else {})
    inputs = Inputs(model_dir, train_data, valid.folder if valid else None, config.run_dir)
    return Prepared(task=task, inputs=inputs, manifests=manifests)


def _stream(
    source: Source, model_dir: Path, config: DataConfig, cache: Path, say: Callable[[str], None]
) -> tuple[Path, dict[str, Any]]:
    """A folder that names a stream by its source and its first rows, so that another one is not resumed by mistake."""
    task, tokenizer = source.open(), tok.load(str(model_dir))
    rest = json.dumps([_identity(task, source, contents=False), config.shuffle_buffer])
    head = islice(source.chunks(), 1)
    folder = cache / f"stream-{data.folder_name(task, head, tokenizer, config, split=source.split, rest=rest)}"
    facts = data.facts(task, tokenizer, source.split) | {"streamed_from": source.source}
    if not data.is_written(folder):
        with data.staged(folder) as stage:
            (stage / "manifest.json").write_text(json.dumps(facts, indent=1))
    say(
        f"{source.split}: streaming {source.source}, shuffled among {config.shuffle_buffer:,} examples per worker; the "
        "last steps of an epoch may hold fewer examples"
    )
    return folder, facts


def _training_table(
    config: RunConfig,
    sources: Sequence[Source],
    model_dir: Path,
    cache: Path,
    reserved: tuple[str, ...],
    say: Callable[[str], None],
) -> data.TokenTable:
    tables = []
    for source in sources:
        tables.append(tokenised(source, model_dir, config.data, cache, reserved=reserved, say=say))
        name = f"train ({source.task}, {source.source})" if config.data.mixture else "train"
        say(describe(name, tables[-1]))
    if not config.data.mixture:
        return tables[0]
    table = mixture.combine(tables, config.data.mixture, seed=config.train.seed, cache=cache)
    for line in describe_mixture(table):
        say(line)
    return table


def tokenised(
    source: Source,
    tokenizer_dir: Path,
    config: DataConfig,
    cache: Path,
    *,
    say: Callable[[str], None],
    reserved: tuple[str, ...] = (),
) -> data.TokenTable:
    """The source in tokens, found or made: here if it is small, else on all CPUs of the cluster.

    Args:
        reserved: special tokens of other tasks in the vocabulary, which the text must not hold either.
    """
    task, tokenizer = source.open(), tok.load(str(tokenizer_dir))
    folder, head, small = _place(source, task, tokenizer, config, cache)
    if not data.is_written(folder):
        about = data.facts(task, tokenizer, source.split)
        if small:
            encoded = (data.encode(task, tokenizer, chunk, config, special_tokens=reserved) for chunk in head)
            data.write(folder, encoded, about)
        else:
            say(f"{source.split}: tokenising {source.source} on Ray Data")
            data.write(folder, _on_ray(source, tokenizer_dir, config, reserved), about)
    return data.opened(folder, config)


def tokenised_before(
    source: Source, tokenizer: tok.Tokenizer, config: DataConfig, cache: Path
) -> data.TokenTable | None:
    """The source in tokens, where an earlier command left it in the cache."""
    task = source.open()
    if not any(cache.glob(f"{task.name}-{source.split}-*")):  # before rows are read to name the folder
        return None
    folder, _, _ = _place(source, task, tokenizer, config, cache)
    return data.opened(folder, config) if data.is_written(folder) else None


def _place(
    source: Source, task: Task, tokenizer: tok.Tokenizer, config: DataConfig, cache: Path
) -> tuple[Path, list[data.Chunk], bool]:
    """The folder of the source's tokens, its first chunks, and whether those are all of them."""
    head = list(islice(source.chunks(), HEAD_CHUNKS + 1))
    small = len(head) <= HEAD_CHUNKS
    del head[HEAD_CHUNKS:]
    rest = "" if small else _identity(task, source)
    return cache / data.folder_name(task, head, tokenizer, config, split=source.split, rest=rest), head, small


def _identity(task: Task, source: Source, *, contents: bool = True) -> str:
    """What decides which rows a large source gives: its content and how it is read."""
    content = fingerprint(task, source.split, source.source, contents=contents)
    return json.dumps([content, sorted(source.columns.items()), source.limit])


def _on_ray(
    source: Source, tokenizer_dir: Path, config: DataConfig, reserved: tuple[str, ...]
) -> Iterator[data.Encoded]:
    from ray_jobs import cluster

    with cluster.connected():
        chunks = tokenise.dataset(source, tokenizer_dir, config, reserved)
        yield from tokenise.chunks_of(chunks.iter_batches(batch_size=None, batch_format="pyarrow"))


def texts(sources: Sequence[Source]) -> list[str]:
    """The first training texts of each source, for a tokenizer that is trained on them."""
    found = []
    for source in sources:
        task = source.open()
        rows = islice(source.records(), TOKENIZER_ROWS)
        found += [plain_text(task, row) for row in rows if task.accepts is None or task.accepts(row)]
    return found


def plain_text(task: Task, record: Record) -> str:
    """The training text as the tokenizer will see it, without the special tokens that are added later."""
    text = "".join(task.encode_text(segment.text) for segment in task.render(record))
    for token in task.special_tokens:
        text = text.replace(token, " ")
    return text


def describe(split: str, table: data.TokenTable) -> str:
    """One line on what was kept and what was left out."""
    facts = table.manifest
    line = (
        f"{split}: {facts['rows']:,} examples, {facts['tokens']:,} tokens, "
        f"{facts['supervised_tokens'] / facts['tokens']:.0%} supervised, longest {facts['longest']}"
    )
    words = {
        "rejected": "rejected by the task",
        "too_long": "over data.max_length",
        "without_loss": "without a supervised token",
    }
    left = [f"{facts['left_out'][reason]['total']:,} rows {text}" for reason, text in words.items()
            if facts["left_out"][reason]["total"]]  # fmt: skip
    return line + (f"; left out {', '.join(left)} ({table.folder / 'manifest.json'})" if left else "")


def describe_mixture(table: data.TokenTable) -> list[str]:
    """What each part gives to an epoch, a line each, and the whole."""
    lines = []
    for part in table.manifest["parts"]:
        line = f"mixture: {part['taken']:,} of {part['examples']:,} examples of {part['folder']}"
        line += f" ({part['taken'] / len(table):.1%} of the epoch)"
        line += f", {part['repeated']:,} of them repeats" if part["repeated"] else ""
        lines.append(line + (f", {part['unused']:,} not used" if part["unused"] else ""))
    tokens, supervised = table.manifest["tokens"], table.manifest["supervised_tokens"]
    return [*lines, f"mixture: {len(table):,} examples, {tokens:,} tokens, {supervised / tokens:.0%} supervised"]
