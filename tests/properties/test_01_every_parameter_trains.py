"""Property 1: under `method.kind: full` every named parameter moves in the first step, new embedding rows included."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import tasks


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_parameter_moves_in_one_step(matrix, tiny, stage, workers):
    start = load_file(tiny.model / "model.safetensors")
    after = matrix.weights(f"zero{stage}-{workers}w-one-step")
    assert set(after) == set(start)
    still = [name for name in start if torch.equal(start[name], after[name])]
    assert still == []


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_rows_of_new_tokens_move(matrix, tiny, stage):
    start = load_file(tiny.model / "model.safetensors")["model.embed_tokens.weight"]
    after = matrix.weights(f"zero{stage}-2w-one-step")["model.embed_tokens.weight"]
    # <END_A> ends a sequence: as an input it never precedes a target, as an output it is supervised (next test)
    for token in ("<START_Q>", "<END_Q>", "<START_A>"):
        row = tiny.tokenizer.convert_tokens_to_ids(token)
        assert not torch.equal(start[row], after[row]), token


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_output_row_of_the_stop_token_moves_towards_being_written(matrix, tiny, stage):
    start = load_file(tiny.model / "model.safetensors")["lm_head.weight"]
    after = matrix.weights(f"zero{stage}-2w-one-step")["lm_head.weight"]
    row = tiny.tokenizer.convert_tokens_to_ids(tasks.get("viggo").stop)
    assert not torch.equal(start[row], after[row])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_parameter_moves_in_bf16(matrix, tiny, stage):
    start = load_file(tiny.model / "model.safetensors")
    after = matrix.weights(f"zero{stage}-2w-bf16-one-step")
    assert [name for name in start if torch.equal(start[name].bfloat16().float(), after[name])] == []
