"""Parameters counted from a configuration are those of the model that transformers builds."""

from __future__ import annotations

from typing import Any

import pytest

from fulltune import architectures
from fulltune.plan import shape

SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("size", "parameters"), [("7b", 6_738_415_616), ("13b", 13_015_864_320), ("70b", 68_976_648_192)]
)
def test_llama_2_has_its_published_number_of_parameters_both_ways(size, parameters):
    config = architectures.load(f"llama2_{size}")
    written = shape.of(config)
    assert written.parameters == parameters
    assert shape.on_meta(config) == written


@pytest.mark.parametrize(
    "family",
    [
        {"model_type": "llama"},
        {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        {"model_type": "llama", "head_dim": 16},
        {"model_type": "mistral"},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    ],
    ids=lambda family: "-".join(str(value) for value in family.values()),
)
def test_families_written_down_are_those_of_transformers(family):
    config = SMALL | family
    assert shape.of(config) == shape.on_meta(config)


def test_a_key_that_is_left_out_takes_the_default_of_transformers():
    config = {key: value for key, value in SMALL.items() if key != "intermediate_size"} | {"model_type": "llama"}
    assert shape.of(config).intermediate_size == 11008


def test_other_architectures_are_built_on_the_meta_device():
    found = shape.of({"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 100})
    assert (found.num_layers, found.hidden_size, found.gated_mlp) == (2, 24, False)
    assert found.parameters == 100 * 24 + 1024 * 24 + 2 * (12 * 24 * 24 + 13 * 24) + 2 * 24
    assert found.plain_head


def test_a_model_that_caps_its_logits_forms_all_of_them():
    small = {"model_type": "gemma2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64}  # fmt: skip
    assert not shape.of(small).plain_head
