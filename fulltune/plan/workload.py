"""What a run has to compute: examples, tokens, steps, and how large its micro-batches get.

From the data's own token lengths where they are at hand, else from what the published data set has; the plan says
which. Known rows are packed as the run will pack them, in its first steps. No tokenizer and no torch here: lengths come
in as an array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fulltune import packing
from fulltune.config import RunConfig
from fulltune.plan.activations import Batch
from tasks.base import UserError

FARTHEST = 4.0  # standard deviations: one micro-batch in thirty thousand has more supervised tokens
SAMPLED_STEPS = 20  # of the run, from its first: how passes and micro-batches come out on known lengths


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity, so that what is sampled of them is kept
class Lengths:
    """Token counts of the training examples.

    Attributes:
        tokens, supervised: (n,) per example.
        source: where they come from, in words for the plan.
        known: they are this data's own, not an assumption.
        longest: tokens of the longest row of all, where these are a sample of rows that were all looked at.
    """

    tokens: np.ndarray
    supervised: np.ndarray
    source: str
    known: bool
    longest: int | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """The arithmetic of a run.

    Attributes:
        tokens, supervised: of the whole run.
        squares: sum of squared example lengths of the whole run: attention's share of the work.
        steps: optimizer steps of the whole run.
        micro_batches: per worker and step: the mean of sampled steps, or at least so many where lengths are not known.
        largest: the micro-batch that memory must hold.
    """

    examples: int
    epochs: float
    tokens: int
    supervised: int
    squares: float
    steps: int
    micro_batches: float
    largest: Batch


@dataclass(frozen=True, slots=True)
class _Sample:
    """What packing made of some steps of the run.

    Attributes:
        passes: micro-batches per worker, mean of the steps.
        fewest: of one full step; the last one of an epoch may have fewer examples.
        fullest: tokens of the largest micro-batch.
        supervised: the most in one micro-batch.
        spread: standard deviation of a micro-batch's supervised tokens about their share, per root of its tokens.
    """

    passes: float
    fewest: int
    fullest: int
    supervised: int
    spread: float


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
        return min(config.data.max_length, lengths.longest or config.data.max_length)
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
    sampled = _sampled(config, lengths, capacity, steps)
    return Workload(
        examples=len(tokens),
        epochs=epochs,
        tokens=round(epochs * int(tokens.sum())),
        supervised=round(epochs * int(supervised.sum())),
        squares=epochs * float((tokens.astype(np.float64) ** 2).sum()),
        steps=steps,
        micro_batches=sampled.passes if sampled else micro_batches,
        largest=_largest(config, tokens, supervised, top, capacity, micro_batches, sampled),
    )


def _sampled(config: RunConfig, lengths: Lengths, capacity: int, steps: int) -> _Sample | None:
    """The run's first steps as they will be packed; None where lengths are not known, or nothing is packed."""
    if not lengths.known or not config.data.packing:
        return None
    train, count = config.train, min(steps, SAMPLED_STEPS)
    where = (config.data.max_length, train.global_batch_size, train.seed, count)
    return _packed(lengths, *where, capacity, config.ray.min_workers)


# a search asks for the same budgets again: with and without checkpointing, with and without host memory
@lru_cache(maxsize=1024)
def _packed(
    lengths: Lengths, max_length: int, batch: int, seed: int, steps: int, capacity: int, workers: int
) -> _Sample:
    tokens, supervised = _kept(lengths, max_length)
    passes: list[tuple[int, int]] = []
    loads: list[tuple[int, int]] = []
    for step in range(1, steps + 1):
        rows = packing.chosen(len(tokens), batch, seed, step)
        shares = packing.pack(tokens, rows, capacity, workers)
        passes.append((len(rows), len(shares[0])))
        loads += [
            (int(tokens[micro].sum()), int(supervised[micro].sum())) for share in shares for micro in share if micro
        ]
    filled, targets = np.array(loads).T  # (micro-batches,) each
    apart = (targets - supervised.sum() / tokens.sum() * filled) / np.sqrt(filled)
    return _Sample(
        passes=sum(count for _, count in passes) / steps,
        fewest=min(count for size, count in passes if size == max(passes)[0]),
        fullest=int(filled.max()),
        supervised=int(targets.max()),
        spread=float(np.sqrt((apart**2).mean())),
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
    config: RunConfig,
    tokens: np.ndarray,
    supervised: np.ndarray,
    top: int,
    capacity: int,
    micro_batches: int,
    sampled: _Sample | None,
) -> Batch:
    """A bound on the tokens of the largest micro-batch, and the most supervised ones that are expected in one.

    Bins are filled longest first into the emptiest, so none exceeds the mean load by more than one example; the mean
    load of a step stays within three standard deviations of a sum of so many examples. Supervised tokens are not
    balanced: they are a tenth over the mean share, or what a micro-batch of the sampled steps has.

    Args:
        top: tokens of the longest example.
        micro_batches: of a mean step.
    """
    if not config.data.packing:
        share = float((supervised / tokens).max()) if top > tokens.max() else 0.0  # of a row that nobody has seen
        return Batch(top, max(int(supervised.max()), math.ceil(share * top)))
    size = _step_examples(config, len(tokens))
    step = size * float(tokens.mean()) + 3 * math.sqrt(size) * float(tokens.std())
    bins = config.ray.min_workers * min(micro_batches, sampled.fewest if sampled else micro_batches)
    load = min(capacity, max(math.ceil(step / bins) + top, sampled.fullest if sampled else 0))
    share = float(supervised.sum()) / float(tokens.sum())
    apart = FARTHEST * sampled.spread * math.sqrt(load) if sampled else 0.0
    most = max(1.1 * share * load, share * load + apart, sampled.supervised if sampled else 0)
    return Batch(load, min(load, math.ceil(most)))
