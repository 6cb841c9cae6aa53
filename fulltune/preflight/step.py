"""The worst-case step, through the engine that trains: the token budget filled with the longest allowed examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fulltune.batches import MicroBatch, collate_examples
from fulltune.comm import Workers
from fulltune.config import RunConfig
from fulltune.data import Example
from fulltune.device import Stopwatch
from fulltune.plan.activations import Batch
from fulltune.preflight.check import Check, judged
from fulltune.preflight.estimate import Timing
from fulltune.preflight.memory import LESS, Use, Watch
from fulltune.tokenizer import IGNORE
from fulltune.train import TrainingEngine


@dataclass(frozen=True, slots=True)
class Measured:
    """What one worker saw of a worst-case step.

    Attributes:
        loss: mean over supervised tokens, of all workers.
        grad_norm: None where it is not finite and float16's loss scaler is expected to find out.
    """

    timing: Timing
    use: Use
    loss: float
    grad_norm: float | None

    def as_json(self) -> dict[str, Any]:
        """As it is recorded."""
        return asdict(self)


def worst_batch(batch: Batch, longest: int, vocab_size: int, *, seed: int = 0) -> MicroBatch:
    """Random tokens: examples of `longest` as far as they fit and one of what is left, supervised at their end."""
    random = np.random.default_rng(seed)
    share = batch.supervised / batch.tokens
    lengths = [longest] * (batch.tokens // longest)
    if (rest := batch.tokens - sum(lengths)) > 1:  # a single token has no next one to predict
        lengths.append(rest)
    examples = []
    for length in lengths:
        ids = random.integers(vocab_size, size=length, dtype=np.int32)
        labels = np.full(length, IGNORE, dtype=np.int32)
        supervised = min(length - 1, max(1, round(share * length)))
        labels[-supervised:] = ids[-supervised:]
        examples.append(Example("preflight", ids, labels))
    return collate_examples(examples, weight=1.0)


def take(engine: TrainingEngine, rows: MicroBatch, config: RunConfig, workers: Workers, watch: Watch) -> Measured:
    """Two optimizer steps of two micro-batches each: the first makes the optimizer's states, the second is measured.

    Two, because the peak is in a later micro-batch, when gradients of the first are there. Every worker calls it.
    """
    _step(engine, rows, config, workers)
    return _step(engine, rows, config, workers, watch)


def _step(
    engine: TrainingEngine, rows: MicroBatch, config: RunConfig, workers: Workers, watch: Watch | None = None
) -> Measured:
    supervised = len(rows.keep)
    total = 2 * supervised * workers.size
    workers.barrier()
    clock = Stopwatch(engine.device)
    losses = engine.accumulate(rows, step_tokens=total, last=False).double()
    first = clock.lap()
    losses += engine.accumulate(rows, step_tokens=total, last=True).double()
    last = clock.lap()
    norm = engine.update(config.train.learning_rate)
    update = clock.lap()
    lengths = rows.cu_seq_lens.diff().double()
    timing = Timing(
        tokens=int(lengths.sum()),
        supervised=supervised,
        squared_lengths=int((lengths**2).sum()),
        first=first,
        last=last,
        update=update,
    )
    loss = workers.sum([float(losses)], engine.device)[0] / total
    use = watch.use() if watch else Use(0, 0)
    return Measured(timing, use, loss, None if engine.scales_loss and not math.isfinite(norm) else norm)


def check_step(found: Mapping[int, Measured], error: str | None, *, workers: int) -> Check:
    """Forward, backward and optimizer step ended on every worker, with numbers.

    Args:
        error: what a worker died of; None where none did.
    """
    wanted = f"a worst-case step that ends on {workers} workers with a finite loss and gradient"
    if error is not None or len(found) < workers:
        got = error or f"{len(found)} of {workers} workers ended the step"
        return Check("worst-case step", False, got, wanted, _fix(got))
    one = found[min(found)]
    finite = math.isfinite(one.loss) and (one.grad_norm is None or math.isfinite(one.grad_norm))
    slowest = max(found.values(), key=lambda measured: measured.timing.first + measured.timing.last)
    timing, norm = slowest.timing, "scaled away" if one.grad_norm is None else f"{one.grad_norm:.3g}"
    return judged(
        "worst-case step",
        ok=finite,
        got=f"{timing.tokens:,} tokens per micro-batch ({timing.supervised:,} supervised) in {timing.first:,.2f} and "
        f"{timing.last:,.2f} s, update {timing.update:,.2f} s; loss {one.loss:.3f}, gradient norm {norm}",
        wanted=wanted,
        fix="check model.dtype (float16 overflows where bfloat16 does not) and the weights",
    )


def _fix(got: str) -> str:
    return LESS if "memory" in got.lower() else "see the message and the workers' logs (`ray logs`)"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host's allocator, had no more to give."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in text
        or "can't allocate memory" in text
    )
