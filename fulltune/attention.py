"""Attention inside the segments of a packed row, for machines without FlashAttention.

A packed row holds several examples one after another; each may see only itself. A 4-D block mask would compute all
T x T scores and throw most away (measured 6x slower at 2,048 tokens on a CPU), so causal attention runs once per
segment. The boundaries arrive as `cu_seq_lens_q`, the argument that FlashAttention's variable-length kernel takes too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

SEGMENTS = "fulltune_segments"


def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention per segment, in the signature of transformers' attention functions.

    Args:
        query: (1, query heads, T, head size)
        key, value: (1, key heads, T, head size); query heads are a multiple of key heads
        cu_seq_lens_q: (segments + 1,) boundaries, from 0 to T

    Returns:
        (1, T, query heads, head size), and None for the weights that are never formed.
    """
    if cu_seq_lens_q is None or attention_mask is not None:
        raise ValueError(
            f"{SEGMENTS} takes packed rows only: got cu_seq_lens_q={cu_seq_lens_q} and an attention mask "
            f"{None if attention_mask is None else tuple(attention_mask.shape)}; use sdpa for padded batches"
        )
    window = other.get("sliding_window")
    longest = int(cu_seq_lens_q.diff().max())
    if other.get("softcap") or other.get("s_aux") is not None or (window and window < longest):
        raise ValueError(
            f"{SEGMENTS} has no soft-capping, no attention sinks and no sliding window: got {sorted(other)} and "
            f"segments of {longest} tokens; train this architecture on CUDA with FlashAttention"
        )
    grouped = query.shape[1] != key.shape[1]
    lengths = cu_seq_lens_q.diff().tolist()
    # split, not slices: its backward joins the pieces once, a slice's fills a whole row with zeros per segment
    segments = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    parts = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)  # (1, heads, t, d)
        for q, k, v in segments
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None  # (1, T, heads, d)


def register() -> None:
    """Makes the function known to transformers under the name `SEGMENTS`."""
    from transformers import AttentionInterface

    AttentionInterface.register(SEGMENTS, segment_attention)
