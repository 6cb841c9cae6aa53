"""The steps of a run whose data is streamed: it never lies on a worker's disk, and its length is not known beforehand.

    epoch -> encoded chunks of this worker -> seeded shuffle buffer -> its share of each step -> micro-batches

The counterpart of `fulltune.batches.StepPlanner` with the promises that a stream allows. Workers agree on every step by
one sum: how many micro-batches it has, how many supervised tokens, whether anybody still has rows. One that has fewer
examples fills up with dummies of weight zero, so none waits for ever and no row is dropped to even things out. The last
steps of an epoch hold fewer examples where the shares of the workers differ in length.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fulltune.batches import MicroBatch, Step, collate_examples
from fulltune.comm import Workers
from fulltune.config import DataConfig, TrainConfig
from fulltune.data import Encoded, Example
from fulltune.packing import pack
from fulltune.tokenizer import IGNORE
from tasks.base import UserError

# epoch -> what this worker gets of it; every worker starts an epoch before any gets a row
Stream = Callable[[int], Iterator[Encoded]]

# takes part in the forward pass of a worker without examples, with weight zero
_DUMMY = Example("dummy", np.zeros(2, dtype=np.int32), np.array([IGNORE, 0], dtype=np.int32))


class StreamPlanner:
    """Plans steps from a stream. They must be asked for in their order, by all workers."""

    def __init__(
        self,
        stream: Stream,
        data: DataConfig,
        train: TrainConfig,
        workers: Workers,
        *,
        device: torch.device | None = None,
        say: Callable[[str], None],
    ) -> None:
        self._stream, self._data, self._train, self._workers, self._say = stream, data, train, workers, say
        self._device = device
        self._step: list[Example] = []
        self._begin(0)

    @property
    def total_steps(self) -> int:
        """The configuration insists on max_steps: the length of a stream is not known beforehand."""
        assert self._train.max_steps is not None, "the configuration checks this"
        return self._train.max_steps

    def _begin(self, epoch: int) -> None:
        self._epoch, self._taken = epoch, 0
        self._seen: Counter[str] = Counter()
        generator = np.random.Generator(np.random.Philox([self._train.seed, epoch, self._workers.rank]))
        self._rows = _shuffled(self._examples(epoch), self._data.shuffle_buffer, generator)

    def _examples(self, epoch: int) -> Iterator[Example]:
        """This worker's share of an epoch; what was left out is counted on the way."""
        for chunk in self._stream(epoch):
            self._seen.update({reason: len(rows) for reason, rows in chunk.left_out.items()})
            self._seen["examples"] += len(chunk.tokens)
            columns = [chunk.tokens[name] for name in ("id", "input_ids", "labels")]
            for name, ids, labels in zip(*columns, strict=True):
                yield Example(name.as_py(), ids.values.to_numpy(), labels.values.to_numpy())

    def step(self, number: int) -> Step:
        """This worker's share of the next step; goes on to the next epoch when no worker has a row left.

        Raises:
            UserError: on all workers, where one of them met a row that cannot be read.
        """
        share = self._train.global_batch_size // self._workers.size
        share += self._workers.rank < self._train.global_batch_size % self._workers.size
        while True:
            mistake = self._pull(share)
            lengths = np.array([len(example.input_ids) for example in self._step], dtype=np.int64)
            capacity = max(self._train.token_budget, self._data.max_length) if self._data.packing else 0
            mine = pack(lengths, range(len(lengths)), capacity, 1)[0] if self._step else []
            supervised = sum(int((example.labels[1:] != IGNORE).sum()) for example in self._step)
            own = (mistake is not None, len(self._step), lengths.sum(), supervised, (lengths**2).sum())
            mistakes, rows, tokens, targets, squares, *counts = self._agree(*own, micro_batches=len(mine))
            if mistakes:
                raise next(error for error in self._workers.gather(mistake) if error is not None)
            if rows:
                break
            self._finish_epoch()
        return Step(
            number=number,
            epoch=float(self._epoch),
            micro_batches=[*mine, *([[]] * (max(counts) - len(mine)))],
            example_indices=list(range(len(self._step))),
            tokens=tokens,
            supervised_tokens=targets,
            padded_tokens=sum(max(counts) - count for count in counts) * len(_DUMMY.input_ids),
            squared_lengths=squares,
        )

    def _pull(self, share: int) -> UserError | None:
        """Takes the next examples. A mistake in the data is returned: raised here, the others would wait for ever."""
        self._step = []
        try:
            self._step += islice(self._rows, share)
        except UserError as error:
            return error
        finally:
            self._taken += len(self._step)
        return None

    def _agree(self, *values: float, micro_batches: int) -> list[int]:
        """Sums over workers, then each worker's number of micro-batches."""
        own = [0.0] * self._workers.size
        own[self._workers.rank] = micro_batches
        return [int(value) for value in self._workers.sum([float(value) for value in (*values, *own)], self._device)]

    def _finish_epoch(self) -> None:
        names = ("examples", "rejected", "too_long", "without_loss")
        sums = self._workers.sum([float(self._seen[name]) for name in names], self._device)
        examples, rejected, too_long, without_loss = (int(value) for value in sums)
        self._say(
            f"epoch {self._epoch + 1} of the stream: {examples:,} examples, each once; left out: {rejected:,} rows "
            f"rejected by the task, {too_long:,} over data.max_length, {without_loss:,} without a supervised token"
        )
        if not examples:
            raise UserError(
                got=f"a stream with 0 usable rows of {rejected + too_long + without_loss}",
                wanted="at least one example",
                fix="raise data.max_length or check data.source",
            )
        self._begin(self._epoch + 1)

    def load(self, indices: Sequence[int]) -> MicroBatch:
        """The tensors of a micro-batch of the step planned last."""
        if not indices:
            return collate_examples([_DUMMY], weight=0.0)
        return collate_examples([self._step[i] for i in indices], weight=1.0)

    def records(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The records of the step planned last, by id and worker; each has its own, so all workers call it."""
        mine = [{"id": self._step[i].id, "worker": self._workers.rank} for i in indices]
        return [record for share in self._workers.gather(mine) for record in share]

    def outlook(self, number: int) -> dict[str, int]:
        """Workers of a stream agree on every step by a sum of its own."""
        return {"next step": number, "steps": self.total_steps}

    def files(self) -> dict[str, str]:
        """Where this worker is in the stream."""
        return {f"stream-{self._workers.rank}.json": json.dumps({"epoch": self._epoch, "taken": self._taken})}

    def restore(self, folder: Path) -> None:
        """Goes to where the checkpoint was taken: the epoch is read again and as many examples are passed over.

        That gives the same examples as without the interruption as long as the source, and the order in which Ray Data
        hands out chunks, are the same. Ray Data keeps the order for the same number of workers.
        """
        shares = len(list(folder.glob("stream-*.json")))
        if shares != self._workers.size:
            raise UserError(
                got=f"{self._workers.size} workers for {folder}, whose stream was shared by {shares}",
                wanted=f"{shares} workers: the shares of a stream depend on their number",
                fix=f"set ray.num_workers={shares}, or use data.loader=exact",
            )
        state = json.loads((folder / f"stream-{self._workers.rank}.json").read_text())
        self._begin(state["epoch"])
        self._taken = sum(1 for _ in islice(self._rows, state["taken"]))


def _shuffled(examples: Iterator[Example], size: int, generator: np.random.Generator) -> Iterator[Example]:
    """Examples in a random order, as far as a buffer of `size` reaches; size 0 keeps theirs."""
    if not size:
        yield from examples
        return
    buffer = list(islice(examples, size))
    for example in examples:
        place = int(generator.integers(len(buffer)))
        buffer[place], example = example, buffer[place]
        yield example
    for place in generator.permutation(len(buffer)):
        yield buffer[int(place)]
