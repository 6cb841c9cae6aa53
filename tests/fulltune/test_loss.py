"""The chunked loss: equal to the plain one, with as few logits at a time as asked, where the architecture allows it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from fulltune.batches import MicroBatch
from fulltune.loss import LinearCrossEntropy, head_ends_the_model, summed_loss


def parts(dtype=torch.float32, tokens=37, vocabulary=64, width=16):
    torch.manual_seed(1)
    hidden = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(vocabulary, (tokens,))


def close(ours, theirs, tolerance):
    return (ours - theirs).float().norm() <= tolerance * theirs.float().norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("chunk", [1, 8, 37, 100])
def test_loss_and_gradients_are_those_of_all_logits_at_once(dtype, tolerance, chunk):
    hidden, weight, targets = parts(dtype)
    plain = cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
    wanted = torch.autograd.grad(plain * 0.3, (hidden, weight))
    loss = LinearCrossEntropy.apply(hidden, weight, targets, chunk, True)
    found = torch.autograd.grad(loss * 0.3, (hidden, weight))
    assert close(loss, plain, tolerance)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == dtype
        assert close(ours, theirs, tolerance)


def test_no_more_logits_than_a_chunk_exist_at_once(monkeypatch):
    sizes = []
    real = torch.nn.functional.linear
    monkeypatch.setattr("fulltune.loss.linear", lambda h, w: sizes.append(len(h)) or real(h, w))
    hidden, weight, targets = parts()
    LinearCrossEntropy.apply(hidden, weight, targets, 10, True)
    assert sizes == [10, 10, 10, 7]


def test_huge_logits_stay_finite():
    hidden, weight, targets = parts()
    loss = LinearCrossEntropy.apply(hidden * 1e4, weight, targets, 8, True)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, (hidden, weight)))


def small(kind, **changes):
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    # as many heads for keys: Gemma's default has a head size of its own
    more = {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 96, "pad_token_id": 0}
    return AutoConfig.for_model(kind, **(shape | more | changes))


@pytest.mark.parametrize(
    ("kind", "ends"),
    [("llama", True), ("qwen3", True), ("mistral", True), ("gemma", True), ("gemma2", False), ("cohere", False),
     ("granite", False), ("phi", False)],
)  # fmt: skip
def test_architectures_that_cap_scale_or_shift_logits_are_told_apart(kind, ends):
    assert head_ends_the_model(small(kind)) is ends


def batch():
    return MicroBatch(
        input_ids=torch.tensor([[5, 6, 7, 8, 9, 10]]),
        position_ids=torch.arange(6)[None],
        cu_seq_lens=torch.tensor([0, 6], dtype=torch.int32),
        max_length=6,
        keep=torch.tensor([1, 3, 4]),
        targets=torch.tensor([7, 9, 10]),
        weight=1.0,
    )


def gradients(model, **options):
    model.zero_grad()
    loss = summed_loss(model, batch(), **options)
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma"])
def test_a_model_learns_the_same_through_its_head(kind, tied):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small(kind, tie_word_embeddings=tied), attn_implementation="eager")
    loss, wanted = gradients(model)
    chunked, found = gradients(model, head=model.get_output_embeddings(), chunk_tokens=2)
    assert chunked == pytest.approx(loss, rel=1e-6)
    assert all(close(found[name], wanted[name], 1e-5) for name in wanted)
    assert model(input_ids=batch().input_ids).logits.shape == (1, 6, 96), "afterwards the head gives logits again"


def test_without_gradients_none_are_formed():
    model = AutoModelForCausalLM.from_config(small("llama"), attn_implementation="eager")
    with torch.no_grad():
        loss = summed_loss(model, batch(), head=model.get_output_embeddings(), chunk_tokens=2)
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(gradients(model)[0], rel=1e-6)
