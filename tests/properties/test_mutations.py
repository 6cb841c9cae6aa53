"""Silent bugs of the libraries below us, put back in: each makes a named check of this suite fail.

A check that still passes with the bug in place proves nothing, so these tests run the checks themselves. The bugs of
the engine run in worker processes (`mutations.py`), those of data, schedule and loop here.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch

from fulltune import batches, data
from fulltune import tokenizer as tok
from fulltune import train as training

HERE = Path(__file__).parent

# mutation -> the run that it spoils, and its cell of the parity matrix
ENGINE = {
    "offload_drops_accumulated_gradients": (2, "-offload-4"),
    "manual_accumulation_discards_gradients": (2, "-packed-4"),
    "gradients_leak_into_the_next_step": (0, "-packed-1"),
    "mean_of_means_over_micro_batches": (1, "-packed-4"),
    "mean_of_means_over_workers": (3, "-packed-1"),
    "schedule_steps_per_micro_batch": (1, "-packed-4"),
    "learning_rate_multipliers_are_lost": (3, "-packed-1"),
    "weight_decay_falls_on_every_parameter": (2, "-packed-1"),
    "dummies_are_trained_on": (1, "-dummy"),
    "new_rows_are_frozen": (0, "-packed-1"),
    "weights_are_not_loaded": (3, "-packed-1"),
    "clipping_is_left_out": (0, "-packed-1"),
}


def module(name: str):
    """Another test module, for its checks."""
    spec = importlib.util.spec_from_file_location(name, next(HERE.parent.rglob(f"{name}.py")))
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def mutated(mutate):
    """Every bug in a run of its own, with two workers."""
    return mutate(ENGINE)


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("mutation", ENGINE)
def test_the_parity_matrix_catches(parity, mutated, plain, follows, mutation):
    matrix = module("test_02_parity_matrix")
    stage, cell = ENGINE[mutation]
    expected = matrix.wanted(plain, cell, 2)
    tolerance = 1e-4 if "offload" in cell else 1e-5
    follows(parity, f"zero{stage}-2w{cell}", expected, tolerance)
    with pytest.raises(AssertionError):
        follows(mutated, mutation, expected, tolerance)


@pytest.mark.slow
@pytest.mark.extended
def test_frozen_new_rows_are_caught_by_property_1(mutated, tiny):
    from safetensors.torch import load_file

    start = load_file(tiny.model / "model.safetensors")["model.embed_tokens.weight"]
    after = mutated.weights("new_rows_are_frozen")["model.embed_tokens.weight"]
    row = tiny.tokenizer.convert_tokens_to_ids("<START_A>")
    # weight decay still shrinks it: what is missing is the movement that a gradient gives
    assert (after[row] - start[row]).abs().max() < 1e-3 * start[row].abs().max()


@pytest.fixture
def examples(tiny):
    table = data.TokenTable(tiny.tokens)
    return [table[i] for i in (3, 11, 20, 42)]


@pytest.fixture(scope="module")
def model(tiny):
    from transformers import AutoModelForCausalLM

    from fulltune import attention

    attention.register()
    return AutoModelForCausalLM.from_pretrained(tiny.model, dtype=torch.float32, attn_implementation=attention.SEGMENTS)


def collated(monkeypatch, change):
    """From here on, packs are changed before they are used."""
    original = batches.collate_examples
    monkeypatch.setattr(
        batches, "collate_examples", lambda examples, weight: change(original(examples, weight=weight), examples)
    )


def test_positions_that_run_on_are_caught(monkeypatch, examples, tiny, model):
    packing = module("test_03_packing_never_leaks")
    packing.test_positions_restart_at_every_example(examples)
    collated(
        monkeypatch,
        lambda batch, _: dataclasses.replace(batch, position_ids=torch.arange(batch.input_ids.shape[1])[None]),
    )
    with pytest.raises(AssertionError):
        packing.test_positions_restart_at_every_example(examples)


def test_packs_without_boundaries_are_caught(monkeypatch, examples, tiny, model):
    packing = module("test_03_packing_never_leaks")
    collated(
        monkeypatch,
        lambda batch, _: dataclasses.replace(
            batch, cu_seq_lens=torch.tensor([0, batch.input_ids.shape[1]], dtype=torch.int32)
        ),
    )
    with pytest.raises(AssertionError):
        packing.test_packed_equals_one_by_one_through_transformers_own_attention(tiny, model, examples)


@pytest.mark.parametrize("shift", [0, 2])
def test_labels_not_shifted_or_shifted_twice_are_caught(monkeypatch, tiny, model, examples, shift):
    packing = module("test_03_packing_never_leaks")
    packing.test_packed_equals_one_by_one_through_transformers_own_attention(tiny, model, examples)

    def moved(batch, examples):
        keep = (batch.keep + 1 - shift).clamp(0, batch.input_ids.shape[1] - 1)
        return dataclasses.replace(batch, keep=keep)

    collated(monkeypatch, moved)
    with pytest.raises(AssertionError):
        packing.test_packed_equals_one_by_one_through_transformers_own_attention(tiny, model, examples)


def test_a_stop_token_without_loss_is_caught(monkeypatch, tiny):
    special = module("test_04_special_tokens")
    special.test_supervised_tokens_are_exactly_the_answer_and_the_stop_token(tiny)
    original = tok.encode_examples

    def masked(tokenizer, task, examples, *, loss_on):
        stop = tok.stop_id(tokenizer, task)
        return [
            (ids, [tok.IGNORE if label == stop else label for label in labels])
            for ids, labels in original(tokenizer, task, examples, loss_on=loss_on)
        ]

    monkeypatch.setattr(tok, "encode_examples", masked)
    with pytest.raises(AssertionError):
        special.test_supervised_tokens_are_exactly_the_answer_and_the_stop_token(tiny)


def test_prompts_with_loss_are_caught(monkeypatch, tiny):
    special = module("test_04_special_tokens")
    original = tok.encode_examples
    monkeypatch.setattr(tok, "encode_examples", lambda *args, loss_on: original(*args, loss_on="all"))
    with pytest.raises(AssertionError):
        special.test_supervised_tokens_are_exactly_the_answer_and_the_stop_token(tiny)


def test_a_second_bos_is_caught(monkeypatch, tiny):
    special = module("test_04_special_tokens")
    special.test_bos_stands_once_and_is_never_a_target(tiny)
    original = tok.bos_ids
    monkeypatch.setattr(tok, "bos_ids", lambda tokenizer: original(tokenizer) * 2)
    with pytest.raises(AssertionError):
        special.test_bos_stands_once_and_is_never_a_target(tiny)


def test_examples_lost_at_the_end_of_an_epoch_are_caught(monkeypatch, tiny):
    packing = module("test_03_packing_never_leaks")
    packing.test_every_example_comes_exactly_once_per_epoch_for_any_number_of_workers(tiny)
    original = batches.pack
    monkeypatch.setattr(batches, "pack", lambda lengths, chosen, *rest: original(lengths, chosen[:-1], *rest))
    with pytest.raises(AssertionError):
        packing.test_every_example_comes_exactly_once_per_epoch_for_any_number_of_workers(tiny)


def test_steps_that_are_skipped_in_silence_are_caught(monkeypatch):
    loop = module("test_train")
    loop.test_a_loss_that_is_not_finite_ends_the_run_with_weights_as_they_were(float("nan"))
    monkeypatch.setattr(training, "_fault", lambda *_, **__: None)
    with pytest.raises(pytest.fail.Exception):
        loop.test_a_loss_that_is_not_finite_ends_the_run_with_weights_as_they_were(float("nan"))


def test_a_loss_averaged_per_micro_batch_is_caught(monkeypatch):
    loop = module("test_train")
    loop.test_loss_is_the_sum_over_micro_batches_by_the_steps_supervised_tokens()
    monkeypatch.setattr(loop.FakeEngine, "accumulate", _mean_of_means(loop.FakeEngine.accumulate))
    with pytest.raises(AssertionError):
        loop.test_loss_is_the_sum_over_micro_batches_by_the_steps_supervised_tokens()


def _mean_of_means(original):
    return lambda self, batch, *, step_tokens, last: original(self, batch, step_tokens=step_tokens, last=last) / 2
