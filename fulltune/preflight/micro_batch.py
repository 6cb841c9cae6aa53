"""Which micro-batch to take, the global batch being fixed: the plan's choice, corrected by what a step measured.

A larger micro-batch means fewer passes per optimizer step, each of which gathers and reduces (ZeRO-2 and 3); beyond
what a worker has to do in a step it only takes memory. So: the fewest passes that fit, then the smallest budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fulltune.config import RunConfig
from fulltune.plan import memory, search, workload
from fulltune.plan.activations import Batch
from fulltune.plan.memory import Setup
from fulltune.plan.workload import Lengths


@dataclass(frozen=True, slots=True)
class Size:
    """A token budget at its worst: filled with examples of `data.max_length`, supervised like the data's most.

    Attributes:
        tokens: `train.micro_batch_tokens`.
        batch: the micro-batch that it allows at worst.
        passes: micro-batches per worker and step, on average.
        planned: bytes that the plan says a worker takes at the peak.
    """

    tokens: int
    batch: Batch
    passes: float
    planned: int


@dataclass(frozen=True, slots=True)
class Peak:
    """What a worst-case step took on the fullest worker, beside the plan's figure for the same micro-batch."""

    planned: int
    measured: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The outcome, as it is recorded.

    Attributes:
        recipe, planned, chosen: token budgets: the recipe's, the plan's choice, and that corrected by the measurement;
            None where none fits.
        passes: of the chosen one.
        expected: its bytes, corrected.
        capacity: bytes that a worker may take.
        tried: a worst-case step with the chosen one ended well.
        override: what makes the recipe use it; None where it does already, or will, as it says `auto`.
        made_for: the settings that the choice holds for.
    """

    recipe: int
    planned: int | None
    chosen: int | None
    passes: float | None
    expected: int | None
    capacity: int
    tried: bool
    override: str | None
    made_for: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """As it is recorded."""
        return asdict(self)


def sizes(config: RunConfig, setup: Setup, lengths: Lengths) -> list[Size]:
    """The recipe's budget and powers of two that hold the longest allowed example; one without packing."""
    longest, own = config.data.max_length, effective(config)
    powers = {tokens for tokens in search.MICRO_BATCHES if tokens >= longest} if config.data.packing else set()
    share = float((lengths.supervised / lengths.tokens).max())
    found = []
    for tokens in sorted(powers | {own}):
        passes = workload.workload(search.with_budget(config, tokens), lengths).micro_batches
        batch = Batch(tokens, max(1, round(share * tokens)))
        found.append(Size(tokens, batch, passes, peak_bytes(replace(setup, batch=batch))))
    return found


def made_for(config: RunConfig) -> dict[str, Any]:
    """What else decides about a worker's memory: a choice made under other settings says nothing."""
    train = config.train
    return {
        "model": config.model.name_or_path or config.model.config,
        "dtype": config.model.dtype,
        "deepspeed": config.deepspeed,
        "workers": config.model_dump(mode="json")["ray"]["num_workers"],
        "accelerator_type": config.ray.accelerator_type,
        "global_batch_size": train.global_batch_size,
        "gradient_checkpointing": train.gradient_checkpointing,
        "loss_chunk_tokens": train.loss_chunk_tokens,
        "max_length": config.data.max_length,
    }


def effective(config: RunConfig) -> int:
    """The recipe's budget as packs are made: never below one whole example, and that alone without packing."""
    longest = config.data.max_length
    return max(config.train.token_budget, longest) if config.data.packing else longest


def peak_bytes(setup: Setup) -> int:
    """What the plan says of one worker: all of a GPU's use, or the tensors alone on a CPU, where RSS tells those."""
    planned = memory.memory(setup)
    return planned.gpu.total if setup.on_gpu else planned.tensors


def expected(size: Size, peak: Peak | None) -> int:
    """The plan's bytes, moved by what the measurement showed: by the difference or the ratio, whichever asks for more.

    Where the plan was too low the ratio grows with the micro-batch; where it was too high only the difference is saved.
    """
    if peak is None:
        return size.planned
    return max(size.planned + peak.measured - peak.planned, int(size.planned * peak.measured / peak.planned))


def choose(candidates: Sequence[Size], capacity: int, peak: Peak | None = None) -> Size | None:
    """The smallest of those that fit with the fewest passes, as far as a plan can tell; None where nothing fits."""
    fitting = [size for size in candidates if expected(size, peak) <= capacity]
    fewest = min((size.passes for size in fitting), default=0.0)
    near = (size for size in fitting if not saves(fewest, size.passes))
    return min(near, key=lambda size: size.tokens, default=None)


def saves(fewer: float, passes: float) -> bool:
    """Whether so many passes are fewer by more than the mean of sampled steps can tell."""
    return passes > search.AS_FAST * fewer


def outcome(
    config: RunConfig,
    candidates: Sequence[Size],
    capacity: int,
    peak: Peak | None,
    *,
    tried: frozenset[int],
    most: int | None = None,
    auto: bool = False,
) -> Choice | None:
    """What to record; None without packing, where a micro-batch is one example.

    Args:
        tried: budgets whose worst-case step ended well.
        most: the largest budget that may be chosen; None for any.
        auto: the recipe leaves the micro-batch open, so that a run takes the choice by itself.
    """
    if not config.data.packing:
        return None
    own = next(size for size in candidates if size.tokens == effective(config))
    allowed = [size for size in candidates if most is None or size.tokens <= most]
    planned, chosen = choose(candidates, capacity), choose(allowed, capacity, peak)
    if (
        chosen is not None
        and own in allowed
        and not saves(chosen.passes, own.passes)
        and expected(own, peak) <= capacity
    ):
        chosen = own  # no reason to change the recipe
    return Choice(
        recipe=config.train.token_budget,
        planned=planned.tokens if planned else None,
        chosen=chosen.tokens if chosen else None,
        passes=chosen.passes if chosen else None,
        expected=expected(chosen, peak) if chosen else None,
        capacity=capacity,
        tried=chosen is not None and chosen.tokens in tried,
        override=f"train.micro_batch_tokens={chosen.tokens}" if chosen and chosen != own and not auto else None,
        made_for=made_for(config),
    )
