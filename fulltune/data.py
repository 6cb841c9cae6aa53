"""From records to token sequences on disk: encode, count, and write once what every worker maps into memory.

    records -> chunks -> encode -> tokens.arrow (id, input_ids, labels) + lengths.npy + manifest.json -> TokenTable

Chunks are encoded here in a row, or side by side by Ray Data (`ray_jobs.tokenise`): the files are the same to the byte,
and at no time does more than a few chunks stand in memory. The folder's name is a hash of everything that decides its
content, so a second run finds it and a changed prompt, tokenizer or row makes a new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fulltune import tokenizer as tok
from fulltune.config import DataConfig
from tasks.base import Record, Task, UserError

FORMAT = 2  # of the files below; part of the cache key
PROBED = 64  # first rows whose rendering goes into the cache key, so that changed code shows
CHUNK_ROWS = 2048  # source rows that are encoded and written together
LISTED = 1000  # ids of left-out rows that the manifest names for each reason; it counts all of them
REASONS = ("rejected", "too_long", "without_loss")

_NUMBERS = pa.list_(pa.int32())
SCHEMA = pa.schema([("id", pa.string()), ("input_ids", _NUMBERS), ("labels", _NUMBERS)])


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised example; both arrays are (T,), labels hold IGNORE where no loss is taken."""

    id: str
    input_ids: np.ndarray
    labels: np.ndarray


# Consecutive records of a split
Chunk = tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A chunk in tokens.

    Attributes:
        tokens: a row per example (`SCHEMA`).
        counts: (n, 2) tokens and supervised tokens of each row.
        left_out: reason -> the rows that gave no example: ids, or [id, tokens] where they are too long.
    """

    tokens: pa.RecordBatch
    counts: np.ndarray
    left_out: Mapping[str, Sequence[Any]]


class TokenTable:
    """Tokenised examples, mapped into memory: a worker touches only the rows it asks for.

    The table of a mixture (`fulltune.mixture`) names rows of other tables in the same cache. The id of a row that it
    repeats ends in `#2`, `#3` ...
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        counts = np.load(folder / "lengths.npy")  # (n, 2)
        self.lengths: np.ndarray = counts[:, 0]
        self.supervised: np.ndarray = counts[:, 1]
        self._parts = [(TokenTable(folder.parent / part["folder"]), part) for part in self.manifest.get("parts", ())]
        if self._parts:
            self._rows = np.load(folder / "rows.npy", mmap_mode="r")  # (n, 3) part, row, copy
        else:
            self._table = pa.ipc.open_file(pa.memory_map(str(folder / "tokens.arrow"))).read_all()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        if self._parts:
            return self._of_part(*(int(number) for number in self._rows[int(index)]))
        row = {name: self._table[name][int(index)] for name in SCHEMA.names}
        return Example(
            id=row["id"].as_py(),
            input_ids=row["input_ids"].values.to_numpy(zero_copy_only=True),
            labels=row["labels"].values.to_numpy(zero_copy_only=True),
        )

    def _of_part(self, part: int, row: int, copy: int) -> Example:
        table, about = self._parts[part]
        example = table[row]
        return replace(example, id=example.id + about["mark"] + (f"#{copy + 1}" if copy else ""))


def prepare(
    task: Task, records: Sequence[Record], tokenizer: tok.Tokenizer, config: DataConfig, *, split: str, cache: Path
) -> TokenTable:
    """Tokenises records that are in memory, or finds them tokenised.

    Rows longer than `config.max_length` and rows without a supervised token are left out, counted and listed in the
    manifest. Raises UserError when a special token stands in the corpus, two rows share an id, or nothing is left.
    """
    chunks = list(chunked(records))
    folder = cache / folder_name(task, chunks, tokenizer, config, split=split)
    if not is_written(folder):
        write(folder, (encode(task, tokenizer, chunk, config) for chunk in chunks), facts(task, tokenizer, split))
    return opened(folder, config)


def chunked(records: Iterable[Record], size: int | None = None) -> Iterator[Chunk]:
    """Records in chunks of `size`, CHUNK_ROWS by default."""
    rows = iter(records)
    while chunk := tuple(islice(rows, size or CHUNK_ROWS)):
        yield chunk


def folder_name(
    task: Task, head: Iterable[Chunk], tokenizer: tok.Tokenizer, config: DataConfig, *, split: str, rest: str = ""
) -> str:
    """Names the content: data, tokenizer, template version and settings.

    Args:
        head: the first chunks; of a small source all of them.
        rest: a hash that stands for the source's rows beyond the head; "" if there are none.
    """
    digest = hashlib.sha256()
    settings = [FORMAT, task.name, task.version, dict(task.options), split, config.max_length, config.loss_on, rest]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(tok.fingerprint(tokenizer).encode())
    for place, record in enumerate(record for chunk in head for record in chunk):
        digest.update(json.dumps([record.id, dict(record.fields)], sort_keys=True, default=str).encode())
        if place < PROBED and _accepted(task, record):
            rendered = [[task.encode_text(segment.text), segment.loss] for segment in task.render(record)]
            digest.update(json.dumps(rendered).encode())
    return f"{task.name}-{split}-{digest.hexdigest()[:16]}"


def _accepted(task: Task, record: Record) -> bool:
    return task.accepts is None or task.accepts(record)


def encode(
    task: Task, tokenizer: tok.Tokenizer, chunk: Chunk, config: DataConfig, *, special_tokens: Sequence[str] = ()
) -> Encoded:
    """Tokenises a chunk. `special_tokens` are those of other tasks in the vocabulary; raises UserError as `prepare`."""
    refuse_special_tokens(task, chunk, special_tokens)
    verdicts = [_accepted(task, record) for record in chunk]
    records = [record for record, accepted in zip(chunk, verdicts, strict=True) if accepted]
    rejected = [record.id for record, accepted in zip(chunk, verdicts, strict=True) if not accepted]
    too_long, without_loss = [], []
    kept: list[tuple[str, np.ndarray, np.ndarray, int]] = []
    encoded = tok.encode_examples(tokenizer, task, [task.render(r) for r in records], loss_on=config.loss_on)
    for record, (ids, labels) in zip(records, encoded, strict=True):
        targets = np.asarray(labels, dtype=np.int32)  # (T,)
        # the first token of a sequence has nothing before it and is never a target
        supervised = int((targets[1:] != tok.IGNORE).sum())
        if len(ids) > config.max_length:
            too_long.append((record.id, len(ids)))
        elif not supervised:
            without_loss.append(record.id)
        else:
            kept.append((record.id, np.asarray(ids, dtype=np.int32), targets, supervised))
    columns = [pa.array([row[0] for row in kept], pa.string()), _lists(kept, 1), _lists(kept, 2)]
    return Encoded(
        tokens=pa.RecordBatch.from_arrays(columns, schema=SCHEMA),
        counts=np.array([[len(row[1]), row[3]] for row in kept], dtype=np.int64).reshape(-1, 2),
        left_out={"rejected": rejected, "too_long": too_long, "without_loss": without_loss},
    )


def _lists(rows: Sequence[tuple[Any, ...]], column: int) -> pa.ListArray:
    """A column of arrays as Arrow lists, without a Python object per token."""
    arrays = [row[column] for row in rows]
    offsets = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int32)
    values = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=_NUMBERS)


def refuse_special_tokens(task: Task, records: Iterable[Record], others: Sequence[str] = ()) -> None:
    """Special tokens must not occur in natural text, or a row could end its own answer."""
    tokens = (*task.special_tokens, *others)
    for record in records:
        for column in task.columns:
            text = str(record.fields.get(column, ""))
            hit = next((token for token in tokens if token in text), None)
            if hit:
                raise UserError(
                    got=f"row {record.id}: column {column!r} contains the special token {hit!r}",
                    wanted="data free of the task's special tokens",
                    fix="remove the row, or choose other tokens for the task",
                )


def facts(task: Task, tokenizer: tok.Tokenizer, split: str) -> dict[str, Any]:
    """What a manifest says besides counts."""
    return {
        "task": task.name,
        "task_version": task.version,
        "split": split,
        "tokenizer": tok.fingerprint(tokenizer),
    }


def is_written(folder: Path) -> bool:
    """Whether this content was prepared before; folders appear under their final name only when they are whole."""
    return (folder / "manifest.json").exists()


def opened(folder: Path, config: DataConfig) -> TokenTable:
    """The table in a folder; UserError if no row was left."""
    table = TokenTable(folder)
    if len(table):
        return table
    left = {reason: rows["total"] for reason, rows in table.manifest["left_out"].items()}
    raise UserError(
        got=f"0 usable rows of {sum(left.values())} in split {table.manifest['split']!r} of task "
        f"{table.manifest['task']!r}: {left['too_long']} longer than {config.max_length} tokens, "
        f"{left['without_loss']} without a supervised token, {left['rejected']} rejected by the task",
        wanted="at least one example",
        fix="raise data.max_length or check data.source",
    )


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to write into; it takes the final name when all is written, so a folder of that name is always whole."""
    stage = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    stage.mkdir(parents=True)
    try:
        yield stage
        os.replace(stage, folder)
    except OSError:
        if not is_written(folder):  # else another process published the same content first
            raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write(folder: Path, chunks: Iterable[Encoded], about: Mapping[str, Any]) -> None:
    """Writes chunks in their order, one in memory at a time."""
    with staged(folder) as stage:
        _write(stage, chunks, about)


def _write(stage: Path, chunks: Iterable[Encoded], about: Mapping[str, Any]) -> None:
    counts: list[np.ndarray] = [np.zeros((0, 2), dtype=np.int64)]
    keys: list[np.ndarray] = [np.zeros(0, dtype=np.uint64)]
    left_out: dict[str, dict[str, Any]] = {reason: {"total": 0, "first": []} for reason in REASONS}
    with pa.ipc.new_file(str(stage / "tokens.arrow"), SCHEMA) as writer:
        for chunk in chunks:
            writer.write_batch(chunk.tokens)
            counts.append(chunk.counts)
            keys.append(_keys(chunk.tokens["id"].to_pylist()))
            for reason, rows in chunk.left_out.items():
                left_out[reason]["total"] += len(rows)
                left_out[reason]["first"] += rows[: LISTED - len(left_out[reason]["first"])]
    _refuse_duplicates(np.concatenate(keys), stage / "tokens.arrow")
    table = np.concatenate(counts)  # (n, 2)
    np.save(stage / "lengths.npy", table)
    (stage / "manifest.json").write_text(json.dumps({**about, **totals(table), "left_out": left_out}, indent=1))


def totals(counts: np.ndarray) -> dict[str, int]:
    """Sums over the examples; `counts` is (n, 2) tokens and supervised tokens."""
    return {
        "rows": len(counts),
        "tokens": int(counts[:, 0].sum()),
        "supervised_tokens": int(counts[:, 1].sum()),
        "longest": int(counts[:, 0].max(initial=0)),
    }


def _keys(ids: Sequence[str]) -> np.ndarray:
    """8 bytes for each id: what fits into memory when the ids themselves do not."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in ids)
    return np.frombuffer(digests, dtype=np.uint64)


def _refuse_duplicates(keys: np.ndarray, file: Path) -> None:
    ordered = np.sort(keys)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return
    ids = pa.ipc.open_file(pa.memory_map(str(file))).read_all()["id"]
    several = Counter(ids[int(i)].as_py() for i in np.flatnonzero(np.isin(keys, repeated)))
    twice = [name for name, times in several.items() if times > 1]
    if twice:  # and not two ids that happen to share 8 bytes
        raise UserError(
            got=f"id {twice[0]!r} on {several[twice[0]]} rows; {len(twice)} such ids in all",
            wanted="a different id in each row",
            fix="make the ids unique, or drop the id column to have rows numbered",
        )
