"""The smallest Llama that trains in earnest: what benchmarks and tests run when the model is not the point."""

from __future__ import annotations

from typing import Any

MODEL: dict[str, Any] = {
    "init": "random",
    "config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    },
    "tokenizer": {"vocab_size": 400},
}
