"""transformers' own continuous batching (`generate_batch`): keys and values in pages, made for GPUs.

Behind `--engine hf-paged`. On a CPU it writes the tokens of one-by-one decoding as well, once the number of pages is
set (by default it takes most of the memory), but more slowly than `fulltune.continuous`. It knows no stop strings, so
answers that end at one are written to their limit and cut afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

PAGE_TOKENS = 32
FORWARD_TOKENS = 2048
ROUND = 256  # prompts handed over together: what a kill loses at most


def unsupported(model: Any) -> str | None:
    """Why pages cannot serve this model, if so."""
    if not hasattr(model, "generate_batch") or not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    return None


def write(
    model: Any, prompts: Mapping[str, Sequence[int]], stop_ids: Sequence[int], *, limit: int, cache_tokens: int
) -> Iterator[list[tuple[str, list[int]]]]:
    """Greedy continuations by name, a round of prompts at a time, the longest prompts first.

    Args:
        prompts: token ids by name.
        limit: of new tokens.
        cache_tokens: how many tokens the pages may hold together; the longest row fits in any case.

    Raises:
        RuntimeError: transformers gave back fewer answers than it was asked for.
    """
    names = sorted(prompts, key=lambda name: (-len(prompts[name]), name))
    settings = GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=list(stop_ids), pad_token_id=stop_ids[0]
    )
    for start in range(0, len(names), ROUND):
        some = names[start : start + ROUND]
        longest = len(prompts[some[0]])
        pages = max(cache_tokens, longest + limit) // PAGE_TOKENS + 2
        config = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS, num_blocks=pages, max_batch_tokens=max(FORWARD_TOKENS, longest)
        )
        found = model.generate_batch(
            inputs=[list(prompts[name]) for name in some],
            generation_config=settings,
            continuous_batching_config=config,
            warmup=False,
        )
        if len(found) != len(some):
            raise RuntimeError(f"generate_batch answered {len(found)} of {len(some)} prompts")
        # request ids count up in the order of the inputs
        ordered = sorted(found, key=lambda request: int(request.rpartition("_")[2]))
        yield [(name, list(found[request].generated_tokens)) for name, request in zip(some, ordered, strict=True)]
