"""Tokenising on Ray Data: one task reads the source row by row, as many tasks as there are CPUs encode its chunks.

    read (one task, on this node) -> chunks -> encode (all CPUs) -> encoded chunks, in the source's order
                                                                 -> the driver writes them (`ray_jobs.prepare`)
                                                                 -> or workers train on them (`ray_jobs.streaming`)

A chunk travels as one row of pickled bytes, so that Ray Data neither merges nor cuts what belongs together. Mistakes in
the data travel the same way: as a `UserError` in place of a chunk, because Ray would wrap and retry a raised one.
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tasks
from fulltune import data
from fulltune import tokenizer as tok
from fulltune.config import DataConfig
from tasks.base import Record, Task, UserError
from tasks.sources import iterate

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

# What the chunks under way may take in the object store: memory stays flat however long the source is
BUFFER_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one task's split, named so that any process can read them (`tasks.sources.locate`)."""

    task: str
    split: str
    source: str
    task_options: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    chunk_rows: int | None = None

    def open(self) -> Task:
        """The task under its options."""
        return tasks.get(self.task, **self.task_options)

    def chunks(self) -> Iterator[data.Chunk]:
        """The rows, read as they are asked for."""
        return data.chunked(self.records(), self.chunk_rows)

    def records(self) -> Iterator[Record]:
        """The rows, accepted by the task or not."""
        return iterate(self.open(), self.split, self.source, columns=self.columns or None, limit=self.limit)


def dataset(source: Source, tokenizer: Path, config: DataConfig, special_tokens: tuple[str, ...]) -> ray.data.Dataset:
    """The encoded chunks of a source as a lazy data set; `chunks_of` reads them back.

    Args:
        tokenizer: a folder that every node sees.
        special_tokens: those of other tasks in the vocabulary.
    """
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it logs every execution; we say what is done ourselves
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    encode = functools.partial(
        _encode, source=source, tokenizer=tokenizer, config=config, special_tokens=special_tokens
    )
    # the reader mostly waits for the encoders, so it takes no CPU from them; another demand also keeps Ray Data from
    # fusing the two into one task
    read = ray.data.from_items([{"source": pickle.dumps(source)}], override_num_blocks=1).map_batches(
        _read, batch_format="pyarrow", batch_size=None, num_cpus=0, label_selector=here
    )
    encoded = read.map_batches(encode, batch_format="pyarrow", batch_size=None, num_cpus=1)
    encoded.context.target_max_block_size = 1  # a block per chunk
    encoded.context.execution_options.preserve_order = True
    encoded.context.execution_options.resource_limits = encoded.context.execution_options.resource_limits.copy(
        object_store_memory=BUFFER_BYTES
    )
    encoded.context.enable_progress_bars = False
    return encoded


def chunks_of(batches: Iterable[pa.Table]) -> Iterator[data.Encoded]:
    """The encoded chunks in batches of the data set; raises the UserError that came instead of one."""
    for batch in batches:
        for payload in batch["chunk"]:
            chunk = pickle.loads(payload.as_buffer())
            if isinstance(chunk, UserError):
                raise chunk
            yield chunk


def _read(batch: pa.Table) -> Iterator[pa.Table]:
    source: Source = pickle.loads(batch["source"][0].as_py())
    try:
        for chunk in source.chunks():
            yield _packed(chunk)
    except UserError as error:
        yield _packed(error)


def _encode(
    batch: pa.Table, *, source: Source, tokenizer: Path, config: DataConfig, special_tokens: tuple[str, ...]
) -> Iterator[pa.Table]:
    task = source.open()
    loaded = _tokenizer(tokenizer)
    for payload in batch["chunk"]:
        chunk = pickle.loads(payload.as_buffer())
        if not isinstance(chunk, UserError):
            try:
                chunk = data.encode(task, loaded, chunk, config, special_tokens=special_tokens)
            except UserError as error:
                chunk = error
        yield _packed(chunk)


@functools.lru_cache(maxsize=2)
def _tokenizer(folder: Path) -> tok.Tokenizer:
    """Once per process. Ray Data runs a task per CPU: threads inside of each would only get in each other's way."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return tok.load(str(folder))


def _packed(item: object) -> pa.Table:
    import pyarrow as pa

    return pa.table({"chunk": pa.array([pickle.dumps(item)], pa.large_binary())})
