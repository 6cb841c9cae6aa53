"""Which examples make up optimizer step s, and how they are packed into micro-batches for each worker.

A plan is a pure function of lengths, seed and step (`fulltune.packing`). The examples of a step are chosen first (a
seeded permutation per epoch, every example exactly once, none dropped) and only then packed, so the optimizer sees the
same sums whatever the number of workers, and resuming needs no state but the step number. Every worker gets the same
number of micro-batches; one that has no example takes a dummy with weight zero, so that no collective waits for ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fulltune.config import TrainConfig
from fulltune.data import Example, TokenTable
from fulltune.packing import chosen, pack
from fulltune.tokenizer import IGNORE


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward pass takes: examples one after another in a single row, without padding.

    Attributes:
        input_ids, position_ids: (1, T); positions restart at every example.
        cu_seq_lens: (examples + 1,) boundaries, int32.
        keep: (K,) positions whose next token is supervised.
        targets: (K,) those next tokens.
        weight: 1, or 0 for a dummy.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seq_lens: torch.Tensor
    max_length: int
    keep: torch.Tensor
    targets: torch.Tensor
    weight: float


@dataclass(frozen=True, slots=True)
class Step:
    """The share of one worker in an optimizer step, with the totals over all workers.

    `padded_tokens` are those of dummies; `squared_lengths` sums up the squares of the examples' lengths.
    """

    number: int
    epoch: float
    micro_batches: Sequence[Sequence[int]]
    example_indices: Sequence[int]
    tokens: int
    supervised_tokens: int
    padded_tokens: int = 0
    squared_lengths: int = 0


class Loader(Protocol):
    """Where a worker's steps come from: a table (`StepPlanner`) or a stream (`fulltune.stream.StreamPlanner`)."""

    @property
    def total_steps(self) -> int:
        """Of the whole run."""

    def step(self, number: int) -> Step:
        """This worker's share of step `number`, from 1."""

    def load(self, indices: Sequence[int]) -> MicroBatch:
        """The tensors of one of its micro-batches."""

    def records(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Names of all workers' records in the step planned last; all workers call it."""

    def outlook(self, number: int) -> dict[str, int]:
        """What workers must agree on before step `number`."""

    def files(self) -> dict[str, str]:
        """What a checkpoint keeps of this worker's place in the data: file name -> content."""

    def restore(self, folder: Path) -> None:
        """Goes to where a checkpoint was taken."""


@dataclass(frozen=True, slots=True)
class StepPlanner:
    """Plans the steps of a run. Steps count from 1, as in logs and checkpoint names."""

    table: TokenTable
    train: TrainConfig
    packing: bool
    rank: int = 0
    num_workers: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.table) / self.train.global_batch_size)

    @property
    def total_steps(self) -> int:
        planned = math.ceil(self.train.num_epochs * self.steps_per_epoch)
        return planned if self.train.max_steps is None else min(planned, self.train.max_steps)

    def step(self, number: int) -> Step:
        """The plan of step `number` (from 1) for this worker."""
        rows = chosen(len(self.table), self.train.global_batch_size, self.train.seed, number)
        lengths = self.table.lengths[rows].astype(np.int64)
        shares = pack(self.table.lengths, rows, self._capacity, self.num_workers)
        dummies = sum(not indices for share in shares for indices in share)
        return Step(
            number=number,
            epoch=number / self.steps_per_epoch,
            micro_batches=shares[self.rank],
            example_indices=[int(i) for i in rows],
            tokens=int(lengths.sum()),
            supervised_tokens=int(self.table.supervised[rows].sum()),
            padded_tokens=dummies * int(self.table.lengths.min()),
            squared_lengths=int((lengths**2).sum()),
        )

    def load(self, indices: Sequence[int]) -> MicroBatch:
        """The tensors of a micro-batch of a step."""
        return collate(self.table, indices)

    def records(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The records behind example indices, by id and by row of the prepared data."""
        return [{"id": self.table[i].id, "row": int(i)} for i in indices]

    def outlook(self, number: int) -> dict[str, int]:
        """What workers must agree on before step `number`, or they would wait for each other for ever."""
        after = {"next step": number, "its micro-batches": len(self.step(number).micro_batches)}
        return {"rows": len(self.table), "steps": self.total_steps} | after

    def files(self) -> dict[str, str]:
        """Nothing to keep: the plan of a step is a function of its number."""
        return {}

    def restore(self, folder: Path) -> None:
        """Nothing to restore."""

    @property
    def _capacity(self) -> int:
        return max(self.train.token_budget, int(self.table.lengths.max())) if self.packing else 0


def collate(table: TokenTable, indices: Sequence[int]) -> MicroBatch:
    """The tensors of one micro-batch. No indices: a dummy, the shortest example with weight zero."""
    if not indices:
        return collate_examples([table[int(table.lengths.argmin())]], weight=0.0)
    return collate_examples([table[i] for i in indices], weight=1.0)


def collate_examples(examples: Sequence[Example], weight: float) -> MicroBatch:
    """The tensors of some examples, one after another."""
    lengths = [len(example.input_ids) for example in examples]
    ids = np.concatenate([example.input_ids for example in examples])  # (T,)
    # the label of the next token, and none after the last token of an example
    nexts = np.concatenate([np.append(example.labels[1:], IGNORE) for example in examples])  # (T,)
    positions = np.concatenate([np.arange(length) for length in lengths])  # (T,)
    keep = np.flatnonzero(nexts != IGNORE)  # (K,)
    return MicroBatch(
        input_ids=torch.from_numpy(ids.astype(np.int64))[None],
        position_ids=torch.from_numpy(positions)[None],
        cu_seq_lens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        max_length=max(lengths),
        keep=torch.from_numpy(keep),
        targets=torch.from_numpy(nexts[keep].astype(np.int64)),
        weight=weight,
    )
