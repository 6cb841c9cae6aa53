"""The activation model against the tensors that autograd saved."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from fulltune import attention
from fulltune.batches import MicroBatch
from fulltune.loss import summed_loss
from fulltune.plan import shape
from fulltune.plan.activations import Batch, activations

LENGTHS = (40, 24, 32)
SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def micro_batch(vocabulary: int = 256) -> MicroBatch:
    total = sum(LENGTHS)
    keep = torch.arange(0, total - 1, 2)
    return MicroBatch(
        input_ids=torch.randint(0, vocabulary, (1, total)),
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
        cu_seq_lens=torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32),
        max_length=max(LENGTHS),
        keep=keep,
        targets=torch.randint(0, vocabulary, (len(keep),)),
        weight=1.0,
    )


def saved_bytes(model: torch.nn.Module, batch: MicroBatch) -> int:
    """Storages that autograd holds after the forward pass, the weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = summed_loss(model, batch)
    found = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
    del loss
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [(LlamaConfig, LlamaForCausalLM), (Qwen3Config, Qwen3ForCausalLM)])
def test_saved_bytes_are_predicted(family, dtype, checkpointing):
    attention.register()
    config = family[0](**SMALL)
    model = family[1]._from_config(config, attn_implementation=attention.SEGMENTS, dtype=dtype).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = micro_batch()
    planned = activations(
        shape.of(SMALL | {"model_type": config.model_type}),
        Batch(sum(LENGTHS), len(batch.keep)),
        dtype_bytes=dtype.itemsize,
        checkpointing=checkpointing,
        attention="segments",
    )
    log_probabilities = 4 * len(batch.keep) * SMALL["vocab_size"]
    assert planned.saved + log_probabilities == pytest.approx(saved_bytes(model, batch), rel=0.05)


def test_a_block_mask_costs_the_square_and_flash_saves_a_copy():
    config = SMALL | {"model_type": "llama"}

    def saved(kernel, tokens):
        return activations(
            shape.of(config), Batch(tokens, 1), dtype_bytes=2, checkpointing=False, attention=kernel
        ).saved

    assert saved("mask", 2000) - saved("segments", 2000) == 2 * 2000 * 2000
    assert saved("segments", 2000) - saved("flash", 2000) == 6 * 2 * 64 * 2000


def peak_bytes(function: Callable[[], object]) -> int:
    """The most that was allocated at a time inside the function, temporaries of kernels included.

    On one thread: a bfloat16 product on a CPU takes a buffer for each, which is no part of the plan.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profile:
            held = function()
    finally:
        torch.set_num_threads(threads)
    del held
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize("chunk", [0, 8, 16, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_of_the_engines_loss_is_predicted(dtype, chunk):
    """Forward and backward pass by the path that the engine takes: the head's forward is the loss, chunk by chunk."""
    attention.register()
    size = {"vocab_size": 20_000, "num_hidden_layers": 1}
    model = LlamaForCausalLM._from_config(
        LlamaConfig(**SMALL | size), attn_implementation=attention.SEGMENTS, dtype=dtype
    ).train()
    rows = micro_batch(20_000)
    head = model.get_output_embeddings() if chunk else None
    planned = activations(
        shape.of(SMALL | size | {"model_type": "llama"}),
        Batch(sum(LENGTHS), len(rows.keep)),
        dtype_bytes=dtype.itemsize,
        checkpointing=False,
        attention="segments",
        loss_chunk=chunk,
    )
    if chunk:
        found = peak_bytes(lambda: summed_loss(model, rows, head=head, chunk_tokens=chunk))
    else:
        found = peak_bytes(lambda: summed_loss(model, rows).backward())
    assert planned.saved + planned.loss == pytest.approx(found, rel=0.05)
