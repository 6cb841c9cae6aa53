"""Bytes that one micro-batch keeps between its forward and its backward pass, and while it computes the loss.

Counts what autograd saves in this code on transformers' decoder layers, operation by operation, instead of taking a
formula from a paper: RMSNorm computes in float32 and keeps its input twice, SwiGLU keeps four rows of the MLP's width,
logits exist for supervised positions only. `tests/fulltune/plan/test_activations.py` holds it against the tensors that
autograd saved (torch.autograd.graph.saved_tensors_hooks). The published per-layer constant 34 h (Korthikanti et al.,
arXiv:2205.05198) is of GPT with fused kernels and 2-byte norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fulltune.plan.shape import ModelShape

FP32 = 4
INT64 = 8

Attention = Literal["flash", "segments", "mask"]


@dataclass(frozen=True, slots=True)
class Batch:
    """The largest micro-batch of a run.

    Attributes:
        tokens: in its one row.
        supervised: of them, positions that get logits.
    """

    tokens: int
    supervised: int


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes on one worker.

    Attributes:
        saved: what autograd holds when the forward pass is over, without the loss.
        working: one layer's recomputation (with checkpointing) and the gradients inside it.
        loss: log-probabilities and the gradients of the logits, at their peak.
    """

    saved: int
    working: int
    loss: int


def activations(
    shape: ModelShape,
    batch: Batch,
    *,
    dtype_bytes: int,
    checkpointing: bool,
    attention: Attention,
    loss_chunk: int = 0,
) -> Activations:
    """What a micro-batch needs besides the model states.

    Args:
        loss_chunk: supervised tokens whose logits exist at a time; 0 for all.
    """
    e, tokens = dtype_bytes, batch.tokens
    layer = layer_bytes(shape, tokens, dtype_bytes=e, attention=attention)
    kept = e * shape.hidden_size * tokens if checkpointing else layer
    shared = _shared(shape, tokens, e, attention)
    inner = shape.intermediate_size
    gradients = e * tokens * 2 * (inner + shape.hidden_size) + e * inner * shape.hidden_size
    return Activations(
        saved=shape.num_layers * kept + shared + _head(shape, batch, e),
        working=gradients + (layer if checkpointing else 0),
        loss=loss_bytes(shape, batch, e, chunk=loss_chunk),
    )


def layer_bytes(shape: ModelShape, tokens: int, *, dtype_bytes: int, attention: Attention) -> int:
    """What autograd saves in one decoder layer without checkpointing."""
    e = dtype_bytes
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    norms = 2 * norm_bytes(hidden, e)
    if shape.head_norms:
        norms += norm_bytes(queries, e) + norm_bytes(keys, e) - e * (queries + keys)
    # rotated queries and keys, values, the output; the per-segment loop joins its outputs into a second tensor
    copies = 1 if attention == "flash" else 2
    mixed = e * (queries + 2 * keys + copies * queries) + FP32 * shape.num_heads
    mlp = e * inner * (4 if shape.gated_mlp else 2)
    return tokens * (norms + mixed + mlp)


def norm_bytes(width: int, dtype_bytes: int) -> int:
    """RMSNorm per token: input in float32, its inverse norm, the normed input, and the output that a matrix takes."""
    return FP32 * width + FP32 + 2 * dtype_bytes * width


def loss_bytes(shape: ModelShape, batch: Batch, dtype_bytes: int, *, chunk: int) -> int:
    """Peak of the cross entropy.

    All at once: log-probabilities, their gradient, and the gradient of the logits, in float32. A chunk at a time
    (`fulltune.loss.LinearCrossEntropy`): a chunk's logits and their exponentials, both in float32, beside what the
    chunk before left, which goes when the next one's is there; and through all of them the gradients of the head and of
    its input, in the training dtype.
    """
    if not chunk:
        return 3 * FP32 * batch.supervised * shape.vocab_size
    rows = min(chunk, batch.supervised)
    copies = 3 if batch.supervised > rows else 2
    gradients = dtype_bytes * shape.hidden_size * (shape.vocab_size + batch.supervised)
    return copies * FP32 * rows * shape.vocab_size + gradients


def _shared(shape: ModelShape, tokens: int, e: int, attention: Attention) -> int:
    """Once per forward pass: token ids, the rotary table, and the mask where attention needs one."""
    mask = e * tokens * tokens if attention == "mask" else 0
    return tokens * (INT64 + 2 * e * shape.head_dim) + mask


def _head(shape: ModelShape, batch: Batch, e: int) -> int:
    """The last norm, and the rows that go into the output projection, with their indices."""
    last = batch.tokens * (FP32 * shape.hidden_size + FP32 + e * shape.hidden_size)
    return last + batch.supervised * (e * shape.hidden_size + 2 * INT64)
