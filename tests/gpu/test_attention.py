"""Property 3 on CUDA: in a pack no example sees another, under FlashAttention and under our loop over segments."""

from __future__ import annotations

import dataclasses
import importlib.util
import os

import pytest
import torch
from transformers import AutoModelForCausalLM

from fulltune import attention, batches, data, device
from fulltune.engine.core import to_device

REHEARSAL = os.environ.get("FULLTUNE_REHEARSE_GPU") == "1"  # tests/gpu/conftest.py
FLASH = pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash_attn is not installed")
KERNELS = [attention.SEGMENTS, pytest.param(device.FLASH, marks=FLASH)]


@pytest.fixture
def target():
    return device.inference_device(use_gpu=not REHEARSAL)


@pytest.fixture
def pack(tiny):
    table = data.TokenTable(tiny.tokens)
    return batches.collate_examples([table[row] for row in (3, 11, 20)], weight=1.0)


def load(tiny, kernel, target):
    attention.register()
    model = AutoModelForCausalLM.from_pretrained(tiny.model, dtype=torch.bfloat16, attn_implementation=kernel)
    return model.to(target).eval()


@torch.no_grad()
def hidden(model, batch, target, kernel):
    """Last hidden states, (T, hidden)."""
    there = to_device(batch, target, attention=kernel)
    return model.base_model(
        input_ids=there.input_ids,
        position_ids=there.position_ids,
        cu_seq_lens_q=there.cu_seq_lens,
        cu_seq_lens_k=there.cu_seq_lens,
        max_length_q=there.max_length,
        max_length_k=there.max_length,
        use_cache=False,
    ).last_hidden_state[0]


@pytest.mark.parametrize("kernel", KERNELS)
def test_another_first_example_changes_nothing_after_it(tiny, pack, target, kernel):
    model, end = load(tiny, kernel, target), int(pack.cu_seq_lens[1])
    other = pack.input_ids.clone()
    other[0, : end - 1] = (other[0, : end - 1] + 7) % 300
    before = hidden(model, pack, target, kernel)
    after = hidden(model, dataclasses.replace(pack, input_ids=other), target, kernel)
    assert not torch.equal(before[:end], after[:end])
    assert torch.equal(before[end:], after[end:])


@FLASH
def test_flash_attention_agrees_with_the_loop(tiny, pack, target):
    kernels = (attention.SEGMENTS, device.FLASH)
    ours, flash = (hidden(load(tiny, kernel, target), pack, target, kernel) for kernel in kernels)
    torch.testing.assert_close(flash, ours, rtol=3e-2, atol=3e-2)


def test_boundaries_stay_where_the_loop_reads_them(pack, target):
    assert to_device(pack, target, attention=attention.SEGMENTS).cu_seq_lens.device.type == "cpu"
    assert to_device(pack, target, attention=device.FLASH).cu_seq_lens.device.type == target.type
