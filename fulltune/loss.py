"""The loss: cross entropy summed over the supervised tokens of a micro-batch.

Sums, not means: the mean is taken once, over all supervised tokens of the optimizer step, whatever micro-batches and
workers they fell on. Logits are formed only where a token is supervised.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from fulltune.batches import MicroBatch


def summed_loss(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Cross entropy summed over the supervised tokens, a scalar in float32; zero for a dummy.

    Args:
        model: a causal language model, or the DeepSpeed engine around it, whose `logits_to_keep` takes positions.
    """
    logits = model(
        input_ids=batch.input_ids,  # (1, T)
        position_ids=batch.position_ids,  # (1, T)
        cu_seq_lens_q=batch.cu_seq_lens,
        cu_seq_lens_k=batch.cu_seq_lens,
        max_length_q=batch.max_length,
        max_length_k=batch.max_length,
        logits_to_keep=batch.keep,
        use_cache=False,
    ).logits  # (1, K, vocabulary)
    return cross_entropy(logits[0].float(), batch.targets, reduction="sum") * batch.weight
