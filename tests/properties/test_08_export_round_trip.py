"""Property 8: export streams shard by shard, and what is reloaded gives the same logits and special-token ids."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import tasks
from fulltune import data
from fulltune import export as exporting
from fulltune import tokenizer as tok
from tasks.base import UserError

TASK = tasks.get("viggo")


def published(matrix, tiny, name, monkeypatch):
    """A folder of the matrix as a checkpoint: with the model's files; its hashes are the checkpoint tests' business."""
    folder = matrix.folders[name]
    if not (folder / exporting.HF_FILES).exists():
        exporting.keep_model_files(tiny.model, folder)
    _as_checkpoint(folder, monkeypatch)
    return folder


def _as_checkpoint(folder, monkeypatch):
    (folder / "manifest.json").write_text('{"files": {}}')
    monkeypatch.setattr("fulltune.checkpoint.verify", lambda _: {})


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_reloaded_logits_are_those_of_the_trained_weights(matrix, tiny, tmp_path, monkeypatch, stage, workers):
    name = f"zero{stage}-{workers}w"
    source = published(matrix, tiny, name, monkeypatch)
    out = exporting.export(source, tmp_path / "hf", TASK, dtype="float32", card="# card", file_bytes=20_000)
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert len(files) > 1, "the small bound must make several files"
    reloaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    trained = AutoModelForCausalLM.from_pretrained(tiny.model, dtype=torch.float32)
    trained.load_state_dict(matrix.weights(name))
    ids = torch.tensor(data.TokenTable(tiny.tokens)[0].input_ids.astype("int64"))[None]
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=ids).logits, trained(input_ids=ids).logits)


def test_tokenizer_and_generation_config_say_how_to_stop(matrix, tiny, tmp_path, monkeypatch):
    source = published(matrix, tiny, "zero2-2w", monkeypatch)
    out = exporting.export(source, tmp_path / "hf", TASK, dtype="float32", card="# card")
    tokenizer = AutoTokenizer.from_pretrained(out)
    for token in TASK.special_tokens:
        assert tokenizer.convert_tokens_to_ids(token) == tiny.tokenizer.convert_tokens_to_ids(token)
    generation = GenerationConfig.from_pretrained(out)
    assert set(generation.eos_token_id) == {tok.stop_id(tokenizer, TASK), tokenizer.eos_token_id}
    assert generation.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert generation.do_sample is False
    assert (out / "README.md").read_text() == "# card"
    assert not list(out.glob("*.bin")) + list(out.glob("*.pt")) + list(out.glob("*.py"))


def test_bf16_run_exports_bf16(matrix, tiny, tmp_path, monkeypatch):
    source = published(matrix, tiny, "zero3-2w-bf16", monkeypatch)
    out = exporting.export(source, tmp_path / "hf", TASK, dtype="bfloat16", card="")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    for name, value in matrix.weights("zero3-2w-bf16").items():
        assert torch.equal(model.state_dict()[name], value.bfloat16()), name


def test_tied_embeddings_are_written_once(tiny_tied, launch, tmp_path, monkeypatch):
    runs = {"tied": {"deepspeed": "zero2", "steps": 2}}
    out = tiny_tied.out / "matrix"
    launch(
        "matrix", 1, base=tiny_tied.base, model=tiny_tied.model, tokens=tiny_tied.tokens, out=out, runs=runs, steps=2
    )
    exporting.keep_model_files(tiny_tied.model, out / "tied")
    _as_checkpoint(out / "tied", monkeypatch)
    folder = exporting.export(out / "tied", tmp_path / "hf", TASK, dtype="float32", card="")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    whole = torch.load(out / "tied" / "whole.pt", weights_only=True)
    assert torch.equal(model.get_output_embeddings().weight, whole["model.embed_tokens.weight"])


def test_a_folder_of_somebody_else_is_not_replaced(matrix, tiny, tmp_path, monkeypatch):
    source = published(matrix, tiny, "zero2-2w", monkeypatch)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="was not written by an export"):
        exporting.export(source, tmp_path / "hf", TASK, dtype="float32", card="")
    assert (tmp_path / "hf" / "thesis.txt").read_text() == "mine"
    out = exporting.export(source, tmp_path / "own", TASK, dtype="float32", card="first")
    exporting.export(source, tmp_path / "own", TASK, dtype="float32", card="second")
    assert (out / "README.md").read_text() == "second"
