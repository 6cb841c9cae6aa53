"""What a run has to compute: examples, tokens, steps, and how large its micro-batches get.

From the data's own token lengths where they are at hand, else from what the published data set has; the plan says
which. No tokenizer and no torch here: lengths come in as an array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fulltune.config import RunConfig
from fulltune.plan.activations import Batch
from tasks.base import UserError


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts of the training examples.

    Attributes:
        tokens, supervised: (n,) per example.
        source: where they come from, in words for the plan.
        known: they are this data's own, not an assumption.
    """

    tokens: np.ndarray
    supervised: np.ndarray
    source: str
    known: bool


@dataclass(frozen=True, slots=True)
class Workload:
    """The arithmetic of a run.

    Attributes:
        tokens, supervised: of the whole run.
        squares: sum of squared example lengths of the whole run: attention's share of the work.
        steps: optimizer steps of the whole run.
        micro_batches: per worker and step, on average at least.
        largest: the micro-batch that memory must hold.
    """

    examples: int
    epochs: float
    tokens: int
    supervised: int
    squares: float
    steps: int
    micro_batches: int
    largest: Batch


def assumed(rows: int, mean: float, spread: float, share: float, source: str) -> Lengths:
    """Lengths of a data set of which only totals are known: rows of two lengths with this mean and spread."""
    low, high = max(1, round(mean - spread)), round(mean + spread)
    tokens = np.where(np.arange(rows) % 2, high, low)
    return Lengths(tokens, np.maximum(1, np.round(tokens * share)).astype(np.int64), source, known=False)


def longest(config: RunConfig, lengths: Lengths) -> int:
    """Tokens of the longest example, or a bound on it: no row may exceed data.max_length.

    Lengths that are not known say nothing of it: the longest row of GSM8K has three times the mean.
    """
    if not lengths.known:
        return config.data.max_length
    return int(lengths.tokens[lengths.tokens <= config.data.max_length].max())


def workload(config: RunConfig, lengths: Lengths) -> Workload:
    """The work of a run on these lengths; rows over data.max_length are left out, as `prepare` does.

    Raises:
        UserError: all of them are.
    """
    tokens, supervised = _kept(lengths, config.data.max_length)
    steps, epochs = _steps(config, len(tokens))
    top = longest(config, lengths)
    capacity, micro_batches = _micro_batches(config, tokens, top)
    return Workload(
        examples=len(tokens),
        epochs=epochs,
        tokens=round(epochs * int(tokens.sum())),
        supervised=round(epochs * int(supervised.sum())),
        squares=epochs * float((tokens.astype(np.float64) ** 2).sum()),
        steps=steps,
        micro_batches=micro_batches,
        largest=_largest(config, tokens, supervised, top, capacity, micro_batches),
    )


def _kept(lengths: Lengths, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the examples that are trained on, all and supervised.

    Assumed rows stand for many of other lengths: what is over the limit is cut, for half of them would go otherwise.
    """
    fitting = lengths.tokens <= max_length
    if not fitting.any():
        raise UserError(
            got=f"data.max_length {max_length:,}; the shortest row has {int(lengths.tokens.min()):,} tokens "
            f"({lengths.source})",
            wanted="a length that some rows do not exceed",
            fix=f"set data.max_length to {int(lengths.tokens.max()):,} or more, or shorten the rows",
        )
    if lengths.known:
        return lengths.tokens[fitting], lengths.supervised[fitting]
    tokens = np.minimum(lengths.tokens, max_length)
    shares = lengths.supervised / lengths.tokens
    return tokens, np.maximum(1, np.round(tokens * shares)).astype(np.int64)


def _steps(config: RunConfig, examples: int) -> tuple[int, float]:
    """Optimizer steps of the run, and how often it takes these examples; a stream goes on until train.max_steps."""
    train = config.train
    if config.data.loader == "streaming":
        steps = int(train.max_steps or 0)
        return steps, steps * train.global_batch_size / examples
    per_epoch = math.ceil(examples / train.global_batch_size)
    planned = math.ceil(train.num_epochs * per_epoch)
    steps = min(planned, train.max_steps or planned)
    return steps, steps / per_epoch


def _step_examples(config: RunConfig, examples: int) -> int:
    """Examples of a full step; those of a stream are a sample, and no bound on it."""
    size = config.train.global_batch_size
    return size if config.data.loader == "streaming" else min(size, examples)


def _micro_batches(config: RunConfig, tokens: np.ndarray, top: int) -> tuple[int, int]:
    """Tokens that a micro-batch may hold, and how many a worker takes per step (`fulltune.batches.pack`)."""
    size, workers = _step_examples(config, len(tokens)), config.ray.min_workers
    if not config.data.packing:
        return top, max(1, math.ceil(size / workers))
    capacity = max(config.train.token_budget, top)
    return capacity, max(1, math.ceil(size * float(tokens.mean()) / (capacity * workers)))


def _largest(
    config: RunConfig, tokens: np.ndarray, supervised: np.ndarray, top: int, capacity: int, micro_batches: int
) -> Batch:
    """A bound on the largest micro-batch.

    Bins are filled longest first into the emptiest, so none exceeds the mean load by more than one example; the mean
    load of a step stays within three standard deviations of a sum of so many examples.

    Args:
        top: tokens of the longest example.
    """
    if not config.data.packing:
        share = float((supervised / tokens).max()) if top > tokens.max() else 0.0  # of a row that nobody has seen
        return Batch(top, max(int(supervised.max()), math.ceil(share * top)))
    size = _step_examples(config, len(tokens))
    step = size * float(tokens.mean()) + 3 * math.sqrt(size) * float(tokens.std())
    bins = config.ray.min_workers * micro_batches
    load = min(capacity, math.ceil(step / bins) + top)
    share = float(supervised.sum()) / float(tokens.sum())
    return Batch(load, min(load, math.ceil(1.1 * share * load)))
