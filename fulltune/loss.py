"""The loss: cross entropy summed over the supervised tokens of a micro-batch.

Sums, not means: the mean is taken once, over all supervised tokens of the optimizer step, whatever micro-batches and
workers they fell on. Logits are formed only where a token is supervised, and only a chunk of them at a time: at 32,000
words and 4,096 tokens all of them, their softmax and its gradient are 1.5 GiB in float32.

For the time of one forward pass the output head's forward *is* the loss. The head stays a single call of its own
module, so ZeRO-3's hooks gather its matrix once for all chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear

from fulltune.batches import MicroBatch


def summed_loss(
    model: Any, batch: MicroBatch, *, head: torch.nn.Linear | None = None, chunk_tokens: int = 0
) -> torch.Tensor:
    """Cross entropy summed over the supervised tokens, a scalar in float32; zero for a dummy.

    Args:
        model: a causal language model, or the DeepSpeed engine around it, whose `logits_to_keep` takes positions.
        head: the model's output head, if `head_ends_the_model`; None forms all logits at once.
        chunk_tokens: supervised tokens whose logits exist at the same time.
    """
    with _returning_the_loss(head, batch.targets, chunk_tokens) if head is not None else nullcontext():
        output: torch.Tensor = model(
            input_ids=batch.input_ids,  # (1, T)
            position_ids=batch.position_ids,  # (1, T)
            cu_seq_lens_q=batch.cu_seq_lens,
            cu_seq_lens_k=batch.cu_seq_lens,
            max_length_q=batch.max_length,
            max_length_k=batch.max_length,
            logits_to_keep=batch.keep,
            use_cache=False,
        ).logits  # (1, K, vocabulary), or the loss itself
    if head is None:
        output = cross_entropy(output[0].float(), batch.targets, reduction="sum")
    return output * batch.weight


@contextmanager
def _returning_the_loss(head: torch.nn.Linear, targets: torch.Tensor, chunk_tokens: int) -> Iterator[None]:
    """Inside, the head answers hidden states (1, K, H) with their summed loss instead of logits."""
    loss: Any = LinearCrossEntropy.apply
    learns = torch.is_grad_enabled()
    # an attribute of the object shadows the method, and the module's call, with all its hooks, finds it first
    own = vars(head)
    own["forward"] = lambda hidden: loss(hidden[0], head.weight, targets, chunk_tokens, learns)
    try:
        yield
    finally:
        del own["forward"]


class LinearCrossEntropy(torch.autograd.Function):
    """Cross entropy of `hidden @ weight.T` against targets, summed, a chunk of tokens at a time.

    The gradients are formed in the forward pass, while a chunk's probabilities are there, so backward recomputes
    nothing: the arithmetic is that of the plain loss (the idea of Liger Kernel, arXiv 2410.10989, section 3.2).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk_tokens: int, learns: bool
    ) -> torch.Tensor:
        """hidden (K, H), weight (V, H), targets (K,) -> a scalar in float32; gradients are formed if `learns`."""
        grad_hidden = torch.empty_like(hidden) if learns else None
        grad_weight = torch.zeros_like(weight) if learns else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            scores = linear(hidden[part], weight).float()  # (k, V)
            wanted = targets[part, None]  # (k, 1)
            norm = scores.logsumexp(dim=1, keepdim=True)  # (k, 1)
            total += (norm - scores.gather(1, wanted)).sum()
            if grad_hidden is not None and grad_weight is not None:
                error = scores.sub_(norm).exp_()  # (k, V), probabilities
                error.scatter_add_(1, wanted, torch.full_like(norm, -1.0))
                error = error.to(weight.dtype)
                torch.mm(error, weight, out=grad_hidden[part])
                grad_weight.addmm_(error.T, hidden[part])
        ctx.gradients = grad_hidden, grad_weight
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        """Scales in place what the forward pass left: one backward pass per forward pass."""
        grad_hidden, grad_weight = ctx.gradients
        del ctx.gradients
        scale = upstream[0]  # scalar
        return grad_hidden.mul_(scale), grad_weight.mul_(scale), None, None, None


def head_ends_the_model(config: Any) -> bool:
    """Whether a model of this architecture returns exactly what its output head returns, a plain matrix product.

    Not so where logits are capped or scaled afterwards (Gemma 2, Cohere, Granite) or where the head has a bias (Phi).
    Asked of a model without weights whose layers are left out.

    Args:
        config: transformers' configuration of the model.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights(), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
        head: Any = model.get_output_embeddings()
        if not _is_plain(head):
            return False
        hidden, answer = torch.zeros(1, 1, head.in_features), torch.zeros(())
    model.base_model.forward = lambda *_, **__: _Backbone(hidden)
    head.forward = lambda _: answer
    return model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False).logits is answer


def _is_plain(head: Any) -> bool:
    return type(head) is torch.nn.Linear and head.bias is None


class _Backbone:
    """What the layers below the head return, whatever an architecture calls it: hidden states, and nothing else."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, _: Any) -> torch.Tensor:
        return self.last_hidden_state

    def __getattr__(self, _: str) -> None:
        return None
