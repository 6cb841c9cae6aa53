"""From records to token sequences on disk: encode, count, and write once what every worker maps into memory.

    records -> encode -> tokens.arrow (id, input_ids, labels) + lengths.npy + manifest.json -> TokenTable

The folder's name is a hash of everything that decides its content, so a second run finds it and a changed prompt,
tokenizer or row makes a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fulltune import tokenizer as tok
from fulltune.config import DataConfig
from tasks.base import Record, Task, UserError

FORMAT = 1  # of the files below; part of the cache key


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised example; both arrays are (T,), labels hold IGNORE where no loss is taken."""

    id: str
    input_ids: np.ndarray
    labels: np.ndarray


class TokenTable:
    """Tokenised examples, mapped into memory: a worker touches only the rows it asks for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        counts = np.load(folder / "lengths.npy")  # (n, 2)
        self.lengths: np.ndarray = counts[:, 0]
        self.supervised: np.ndarray = counts[:, 1]
        self._table = pa.ipc.open_file(pa.memory_map(str(folder / "tokens.arrow"))).read_all()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        row = {name: self._table[name][int(index)] for name in ("id", "input_ids", "labels")}
        return Example(
            id=row["id"].as_py(),
            input_ids=row["input_ids"].values.to_numpy(zero_copy_only=True),
            labels=row["labels"].values.to_numpy(zero_copy_only=True),
        )


def prepare(
    task: Task, records: Sequence[Record], tokenizer: tok.Tokenizer, config: DataConfig, *, split: str, cache: Path
) -> TokenTable:
    """Tokenises a split, or finds it tokenised.

    Rows longer than `config.max_length` and rows without a supervised token are left out, counted and listed in the
    manifest. Raises UserError when a special token stands in the corpus, or when nothing is left.
    """
    folder = cache / _key(task, records, tokenizer, config, split)
    if not (folder / "manifest.json").exists():
        refuse_special_tokens(task, records)
        _write(folder, task, records, tokenizer, config, split)
    table = TokenTable(folder)
    if not len(table):
        raise UserError(
            got=f"0 usable rows of {len(records)} in split {split!r} of task {task.name!r}: "
            f"{len(table.manifest['too_long'])} longer than {config.max_length} tokens, "
            f"{len(table.manifest['without_loss'])} without a supervised token",
            wanted="at least one example",
            fix="raise data.max_length or check data.source",
        )
    return table


def refuse_special_tokens(task: Task, records: Sequence[Record]) -> None:
    """Special tokens must not occur in natural text, or a row could end its own answer."""
    for record in records:
        for column in task.columns:
            hit = next((t for t in task.special_tokens if t in str(record.fields.get(column, ""))), None)
            if hit:
                raise UserError(
                    got=f"row {record.id}: column {column!r} contains the special token {hit!r}",
                    wanted="data free of the task's special tokens",
                    fix="remove the row, or choose other tokens for the task",
                )


def _key(task: Task, records: Sequence[Record], tokenizer: tok.Tokenizer, config: DataConfig, split: str) -> str:
    """Names the content: data, tokenizer, template version and settings."""
    digest = hashlib.sha256()
    settings = [FORMAT, task.name, task.version, dict(task.options), split, config.max_length, config.loss_on]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(tok.fingerprint(tokenizer).encode())
    for record in records:
        rendered = [[task.encode_text(segment.text), segment.loss] for segment in task.render(record)]
        digest.update(json.dumps([record.id, rendered]).encode())
    return f"{task.name}-{split}-{digest.hexdigest()[:16]}"


def _write(
    folder: Path, task: Task, records: Sequence[Record], tokenizer: tok.Tokenizer, config: DataConfig, split: str
) -> None:
    kept: list[tuple[str, list[int], list[int]]] = []
    too_long, without_loss = [], []
    encoded = tok.encode_examples(tokenizer, task, [task.render(r) for r in records], loss_on=config.loss_on)
    for record, (ids, labels) in zip(records, encoded, strict=True):
        if len(ids) > config.max_length:
            too_long.append([record.id, len(ids)])
        elif all(label == tok.IGNORE for label in labels[1:]):
            without_loss.append(record.id)
        else:
            kept.append((record.id, ids, labels))
    counts = np.array([[len(ids), _num_targets(labels)] for _, ids, labels in kept], dtype=np.int64).reshape(-1, 2)
    manifest = {
        "task": task.name,
        "task_version": task.version,
        "split": split,
        "rows": len(kept),
        "tokens": int(counts[:, 0].sum()),
        "supervised_tokens": int(counts[:, 1].sum()),
        "longest": int(counts[:, 0].max(initial=0)),
        "too_long": too_long,
        "without_loss": without_loss,
        "tokenizer": tok.fingerprint(tokenizer),
    }
    _publish(folder, kept, counts, manifest)


def _num_targets(labels: list[int]) -> int:
    """Supervised tokens: the first token of a sequence has nothing before it and is never a target."""
    return sum(label != tok.IGNORE for label in labels[1:])


def _publish(
    folder: Path, kept: Sequence[tuple[str, list[int], list[int]]], counts: np.ndarray, manifest: dict[str, Any]
) -> None:
    """Writes beside the final name and renames, so that a folder with this name is always whole."""
    stage = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    stage.mkdir(parents=True)
    numbers = pa.list_(pa.int32())
    table = pa.table(
        {
            "id": pa.array([row[0] for row in kept], pa.string()),
            "input_ids": pa.array([row[1] for row in kept], numbers),
            "labels": pa.array([row[2] for row in kept], numbers),
        }
    )
    with pa.ipc.new_file(str(stage / "tokens.arrow"), table.schema) as writer:
        writer.write_table(table)
    np.save(stage / "lengths.npy", counts)
    (stage / "manifest.json").write_text(json.dumps(manifest, indent=1))
    try:
        os.replace(stage, folder)
    except OSError:  # another process published the same content first
        shutil.rmtree(stage)
