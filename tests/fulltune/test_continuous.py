"""Continuous batches write what one-by-one greedy decoding writes, whoever joins or leaves, and know their limits."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fulltune import continuous, paged

VOCABULARY = 64
STOPS = (3, 19, 40)
LIMIT = 24
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SHAPE | {"intermediate_size": 64, "num_key_value_heads": 2, "initializer_range": 0.4}


def built(model_class, config):
    torch.manual_seed(0)
    model = model_class(config).eval()
    model.set_attn_implementation("sdpa")
    return model


@pytest.fixture(scope="module")
def llama():
    return built(LlamaForCausalLM, LlamaConfig(**GROUPED))


def drawn(count, *, common=0):
    draw = torch.Generator().manual_seed(7)

    def ids(length):
        return torch.randint(VOCABULARY, (length,), generator=draw).tolist()

    beginning = ids(common)
    return {str(i): beginning + ids(3 + (11 * i) % 17) for i in range(count)}


def one_by_one(model, ids, limit=LIMIT):
    new = []
    with torch.no_grad():
        while len(new) < limit and not (new and new[-1] in STOPS):
            new.append(int(model(torch.tensor([[*ids, *new]]), use_cache=False).logits[0, -1].argmax()))
    return new


def written(model, prompts, cache_tokens, limit=LIMIT):
    steps = continuous.write(model, prompts, limit=limit, ended=lambda new: new[-1] in STOPS, cache_tokens=cache_tokens)
    found = list(chain(*steps))
    assert len(found) == len(prompts), "every prompt is answered once"
    return dict(found)


@pytest.mark.parametrize("common", [0, 30])
@pytest.mark.parametrize("cache_tokens", [1, 150, 4000])  # one slot, a few that are used again and again, one for each
def test_tokens_are_those_of_one_by_one_decoding(llama, common, cache_tokens):
    prompts = drawn(20, common=common)
    expected = {name: one_by_one(llama, ids) for name, ids in prompts.items()}
    lengths = {len(new) for new in expected.values()}
    assert len(lengths) > 3, "rows must leave at different times"
    assert max(lengths) == LIMIT, "some rows must be cut off"
    assert written(llama, prompts, cache_tokens) == expected


def test_a_row_that_has_ended_makes_room_at_once(llama, monkeypatch):
    """With 4 slots, rows of the later prompts stand beside rows of the first ones."""
    seen = []
    real = continuous._advance

    def watched(model, rows, new, *rest):
        seen.append(({row.name for row in rows}, {row.name for row in new}))
        return real(model, rows, new, *rest)

    monkeypatch.setattr(continuous, "_advance", watched)
    written(llama, drawn(20), cache_tokens=4 * (19 + LIMIT))
    assert max(len(rows) + len(new) for rows, new in seen) == 4
    assert any(rows and new for rows, new in seen), "nobody joined an open batch"


def test_much_shorter_prompts_get_slots_of_their_own_length(llama, monkeypatch):
    made = []
    real = continuous.Slots
    monkeypatch.setattr(continuous, "Slots", lambda *given: made.append(given) or real(*given))
    prompts = {"long": [5] * 200} | drawn(20)
    expected = {name: one_by_one(llama, ids) for name, ids in prompts.items()}
    assert written(llama, prompts, cache_tokens=300) == expected
    assert made == [(1, 200 + LIMIT), (6, 19 + LIMIT)]


@pytest.mark.parametrize("finished", [1, 2])
def test_rows_are_drawn_together_over_free_slots(finished):
    rows = [continuous.Row(str(i), [0], [i]) for i in range(5)]
    done = [i < finished for i in range(5)]
    slots = continuous.Slots(5, 4)
    numbers = torch.arange(5.0)[:, None, None, None].expand(5, 1, 4, 1).clone()
    slots.layers[0] = continuous.Layer(numbers, numbers.clone(), torch.zeros(1, 0, 1), torch.zeros(1, 0, 1))
    left = continuous._closed_up(rows, done, slots)
    assert {row.name for row in left} == {str(i) for i in range(finished, 5)}
    assert [int(slots.layers[0].keys[i, 0, 0, 0]) for i in range(len(left))] == [int(row.name) for row in left]


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (LlamaForCausalLM, LlamaConfig(**GROUPED)),
        (Qwen3ForCausalLM, Qwen3Config(**GROUPED, head_dim=8)),
        (MistralForCausalLM, MistralConfig(**GROUPED, sliding_window=None)),
        (GPT2LMHeadModel, GPT2Config(**SHAPE, bos_token_id=0, eos_token_id=0)),
    ],
)
def test_architectures_that_slots_serve(model_class, config):
    model = built(model_class, config)
    assert continuous.unsupported(model) is None
    prompts = drawn(6, common=20)
    assert written(model, prompts, 500, limit=8) == {n: one_by_one(model, ids, 8) for n, ids in prompts.items()}
    assert model.config._attn_implementation == "sdpa", "the model is left as it was"


def test_what_slots_cannot_serve_is_told_by_name(llama, monkeypatch):
    window = built(MistralForCausalLM, MistralConfig(**GROUPED, sliding_window=4))
    assert "sliding window" in continuous.unsupported(window)
    assert window.config._attn_implementation == "sdpa"
    state_space = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1))
    assert "cannot be replaced" in continuous.unsupported(state_space)
    llama.config.layer_types = ["full_attention", "linear_attention"]
    assert "linear_attention" in continuous.unsupported(llama)
    llama.config.layer_types = None
    real = continuous._step

    def shifted(rows, new, device):
        step = real(rows, new, device)
        step.hidden[..., :1] = float("-inf")  # a row that does not see its first token
        return step

    monkeypatch.setattr(continuous, "_step", shifted)
    assert "logits differ" in continuous.unsupported(llama)


def test_transformers_paged_batches_write_the_same_tokens(llama):
    prompts = drawn(9)
    found = dict(chain(*paged.write(llama, prompts, STOPS, limit=LIMIT, cache_tokens=400)))
    assert found == {name: one_by_one(llama, ids) for name, ids in prompts.items()}
