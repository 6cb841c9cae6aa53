"""FLOPs of a step: against torch's own counter on a live model, against arithmetic by hand, by segment."""

from __future__ import annotations

import pytest

from fulltune import architectures
from fulltune.plan import shape
from fulltune.plan.flops import head_weights, linear_weights, step_flops

LLAMA_2_7B = shape.of(architectures.load("llama2_7b"))
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}


def test_llama_2_7b_by_hand():
    flops = step_flops(LLAMA_2_7B, [4096])
    embeddings, norms = 2 * 32000 * 4096, 65 * 4096
    assert linear_weights(LLAMA_2_7B) == 6_738_415_616 - embeddings - norms
    assert flops.linear == 6 * linear_weights(LLAMA_2_7B) * 4096
    assert flops.attention == 12 * 32 * 4096 * 4096**2
    assert flops.logits == 6 * 32000 * 4096 * 4096
    assert flops.model == flops.linear + flops.attention + flops.logits


def test_a_pack_costs_the_squares_of_its_segments_not_of_its_length():
    packed, alone = step_flops(LLAMA_2_7B, [1024, 512, 512]), step_flops(LLAMA_2_7B, [2048])
    assert packed.linear == alone.linear
    assert packed.attention / alone.attention == pytest.approx((1024**2 + 2 * 512**2) / 2048**2)


def test_logits_are_charged_where_they_are_formed():
    every, some = step_flops(LLAMA_2_7B, [100]), step_flops(LLAMA_2_7B, [100], supervised_tokens=64)
    assert some.logits == every.logits * 0.64
    assert some.linear == every.linear


def test_checkpointing_adds_to_hardware_flops_only():
    plain, again = step_flops(LLAMA_2_7B, [4096]), step_flops(LLAMA_2_7B, [4096], recomputed_layers=1.0)
    assert plain.model == again.model
    down = 32 * 4096 * 11008
    assert again.hardware - plain.hardware == 2 * (linear_weights(LLAMA_2_7B) - down) * 4096 + plain.attention / 3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_torch_counts_the_same_products_on_a_live_model(checkpointing):
    """Linear layers and head exactly; attention is left out: torch has no formula for the kernel it takes on CPUs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY), attn_implementation="sdpa")
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    ids, keep = torch.randint(0, 512, (1, 48)), torch.arange(20, 48)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits.sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counted.items() if "attention" not in str(op))
    tiny = shape.of(TINY)
    ours = step_flops(tiny, [48], supervised_tokens=28, recomputed_layers=float(checkpointing))
    attention_again = ours.attention / 3 * (0.5 + checkpointing)
    rotation = products - (ours.hardware - ours.attention - attention_again)
    # rotary angles are a product of positions and frequencies, one per forward pass of the model, outside the layers
    assert 0 <= rotation <= 2 * 48 * 16
    assert head_weights(tiny) == 512 * 64
