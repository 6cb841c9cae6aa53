"""Floating-point operations of an optimizer step, from the sizes of the model's matrix products and the lengths of its
examples.

Two counts are kept apart. Model FLOPs are what the loss and its gradient need, and nothing else: the numerator of MFU
(Chowdhery et al., arXiv 2204.02311, appendix B). Hardware FLOPs add what activation checkpointing computes a second
time (Korthikanti et al., arXiv 2205.05198, section 5): what the GPU has to find time for.

Attention is counted by example, not by pack: a pack of segments s_1, s_2, ... costs the sum of their squares. Logits are
counted where they are formed: at supervised positions in this trainer, everywhere in most others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fulltune.plan.shape import ModelShape


@dataclass(frozen=True, slots=True)
class MatrixProducts:
    """The sizes that decide a model's arithmetic.

    Attributes:
        linear: weights of the matrix products of all layers together.
        head: weights of the output projection, hidden size x vocabulary.
        attention_width: query heads x head size.
        parameters: all parameters of the model, embeddings and norms included.
    """

    layers: int
    linear: int
    head: int
    attention_width: int
    parameters: int


def of_shape(shape: ModelShape) -> MatrixProducts:
    """The products of a Llama-like model: q, k, v, o and a gated MLP of three matrices in every layer."""
    width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    attention = shape.hidden_size * (2 * width + 2 * kv_width)
    mlp = 3 * shape.hidden_size * shape.intermediate_size
    return MatrixProducts(
        layers=shape.num_layers,
        linear=shape.num_layers * (attention + mlp),
        head=shape.hidden_size * shape.vocab_size,
        attention_width=width,
        parameters=shape.parameters,
    )


@dataclass(frozen=True, slots=True)
class StepFlops:
    """FLOPs of forward and backward passes, by what they are spent on, and what checkpointing computes again."""

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
    products: MatrixProducts,
    segment_lengths: Iterable[int],
    *,
    supervised_tokens: int | None = None,
    recomputed_layers: float = 0.0,
    causal: bool = False,
) -> StepFlops:
    """The FLOPs of a step over examples of these lengths, on all workers together.

    A weight costs two operations per token forward and four backward; a pair of positions costs four per unit of
    attention width forward and eight backward.

    Args:
        supervised_tokens: positions at which logits are formed; None for every one.
        recomputed_layers: share of the layers that checkpointing runs forward twice; 1.0 for all.
        causal: count only pairs that a causal mask leaves. Published MFU counts all of them, and so does ours.
    """
    lengths = list(segment_lengths)
    tokens = sum(lengths)
    pairs = sum(length * length for length in lengths) * (0.5 if causal else 1.0)
    linear = 2.0 * products.linear * tokens
    attention = 4.0 * products.layers * products.attention_width * pairs
    logits = 2.0 * products.head * (tokens if supervised_tokens is None else supervised_tokens)
    return StepFlops(
        linear=3.0 * linear,
        attention=3.0 * attention,
        logits=3.0 * logits,
        recomputed=recomputed_layers * (linear + attention),
    )
