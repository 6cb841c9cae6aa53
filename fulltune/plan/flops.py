"""Floating-point operations of an optimizer step, from the shape of the model and the lengths of its examples.

Two counts are kept apart. Model FLOPs are what the loss and its gradient need, and nothing else: the numerator of MFU
(Chowdhery et al., arXiv 2204.02311, appendix B). Hardware FLOPs add what is computed a second time to save memory, by
activation checkpointing and by FlashAttention's backward pass: what the GPU has to find time for.

Attention is counted by example, not by pack: segments of s_1, s_2, ... tokens cost the sum of their squares. Logits are
counted where they are formed: at supervised positions in this trainer, everywhere in most others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fulltune.plan.shape import ModelShape


@dataclass(frozen=True, slots=True)
class StepFlops:
    """FLOPs of forward and backward passes, by what they are spent on, and what is computed again."""

    linear: float
    attention: float
    logits: float
    recomputed: float

    @property
    def model(self) -> float:
        return self.linear + self.attention + self.logits

    @property
    def hardware(self) -> float:
        return self.model + self.recomputed


def step_flops(
    shape: ModelShape,
    segment_lengths: Iterable[int],
    *,
    supervised_tokens: int | None = None,
    recomputed_layers: float = 0.0,
) -> StepFlops:
    """The FLOPs of a step over examples of these lengths, on all workers together.

    A weight costs two operations per token forward and four backward; a pair of positions costs four per unit of
    attention width forward and eight backward. All pairs are counted, also those that the causal mask removes: that is
    the convention of published MFU. Checkpointing runs a layer forward again up to its last product, whose result the
    backward pass does not need; FlashAttention's backward pass forms the scores again, half of its forward work.

    Args:
        supervised_tokens: positions at which logits are formed; None for every one.
        recomputed_layers: share of the layers that are checkpointed; 1.0 for all.
    """
    lengths = list(segment_lengths)
    return step_flops_of_sums(
        shape,
        tokens=sum(lengths),
        squared_lengths=sum(length * length for length in lengths),
        supervised_tokens=supervised_tokens,
        recomputed_layers=recomputed_layers,
    )


def step_flops_of_sums(
    shape: ModelShape,
    *,
    tokens: float,
    squared_lengths: float,
    supervised_tokens: float | None = None,
    recomputed_layers: float = 0.0,
) -> StepFlops:
    """`step_flops` where only the sum of the lengths and the sum of their squares are known."""
    linear = 2.0 * linear_weights(shape) * tokens
    attention = 4.0 * shape.num_layers * shape.num_heads * shape.head_dim * squared_lengths
    logits = 2.0 * head_weights(shape) * (tokens if supervised_tokens is None else supervised_tokens)
    last = 2.0 * shape.num_layers * shape.hidden_size * shape.intermediate_size * tokens
    return StepFlops(
        linear=3.0 * linear,
        attention=3.0 * attention,
        logits=3.0 * logits,
        recomputed=recomputed_layers * (linear - last + attention) + attention / 2.0,
    )


def linear_weights(shape: ModelShape) -> int:
    """Weights in the matrix products of all layers: q, k, v, o, and an MLP of two matrices, three where it is gated."""
    heads = shape.head_dim * (2 * shape.num_heads + 2 * shape.num_kv_heads)
    mlp = (3 if shape.gated_mlp else 2) * shape.intermediate_size
    return shape.num_layers * shape.hidden_size * (heads + mlp)


def head_weights(shape: ModelShape) -> int:
    """Weights of the output projection, whether or not it shares them with the embedding."""
    return shape.hidden_size * shape.vocab_size
