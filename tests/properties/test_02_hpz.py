"""Property 2 under ZeRO++ hpZ: a second copy of the weights per node changes what travels, and nothing else.

Four workers in two groups of two, two micro-batches a step. Apart from the matrix: DeepSpeed makes the groups of hpZ
once per process.
"""

from __future__ import annotations

import pytest
import torch

import deepspeed_configs

pytestmark = [pytest.mark.slow, pytest.mark.extended]


def test_hpz_follows_plain_zero_3_to_the_last_bit(tiny, launch, tmp_path):
    settings = deepspeed_configs.load("zero3_hpz")
    settings["zero_optimization"]["zero_hpz_partition_size"] = 2
    small = {"train__micro_batch_tokens": 256}
    runs = {"plain": {"deepspeed": "zero3"} | small, "hpz": {"deepspeed": settings} | small}
    found = launch("matrix", 4, base=tiny.base, model=tiny.model, tokens=tiny.tokens, out=tmp_path, steps=3, runs=runs)[
        0
    ]
    assert found["hpz"][0]["micro_batches"] >= 2
    assert [record["loss"] for record in found["hpz"]] == [record["loss"] for record in found["plain"]]
    plain, copied = (torch.load(tmp_path / name / "whole.pt") for name in runs)
    assert all(torch.equal(plain[name], copied[name]) for name in plain)
