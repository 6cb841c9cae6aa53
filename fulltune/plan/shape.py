"""The shape of a model, read off its configuration: every parameter by name and shape, without weights or a device.

First station of a plan; memory, FLOPs and time are computed from it. The families that make up most runs (Llama,
Mistral, Qwen) are written down, because building even an empty model costs seconds of imports; any other causal
language model is built on the meta device, where tensors have shapes and no storage. A test holds both ways equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

Tensor = tuple[str, tuple[int, ...]]

SIZES = frozenset(
    {
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    }
)
# model_type -> keys without which transformers would fill in a default of its own
WRITTEN_DOWN = {"llama": SIZES, "mistral": SIZES, "qwen2": SIZES, "qwen3": SIZES | {"head_dim"}}


@dataclass(frozen=True)  # without slots: the sums below are kept
class ModelShape:
    """A decoder-only language model as a plan sees it.

    Attributes:
        intermediate_size: width of the MLP.
        vocab_size: rows of the embedding, as they will be trained (task tokens added, padded).
        tie_embeddings: the output projection is the input embedding.
        parameters: trained numbers; a tied embedding counts once.
        tensors: name and shape of every parameter, in the model's order.
        gated_mlp: three matrices per MLP (SwiGLU) instead of two.
        head_norms: queries and keys are normalised per head (Qwen3).
        plain_head: the output projection is the model's last operation (`fulltune.loss.head_ends_the_model`).
    """

    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tie_embeddings: bool
    tensors: tuple[Tensor, ...] = field(hash=False)
    gated_mlp: bool = True
    head_norms: bool = False
    plain_head: bool = True

    @cached_property
    def parameters(self) -> int:
        return sum(math.prod(size) for _, size in self.tensors)

    @cached_property
    def layer_parameters(self) -> int:
        """Parameters of the largest decoder layer."""
        layers: dict[str, int] = {}
        for name, size in self.tensors:
            head, found, rest = name.partition(".layers.")
            if found:
                key = rest.partition(".")[0]
                layers[key] = layers.get(key, 0) + math.prod(size)
        return max(layers.values(), default=self.parameters // max(1, self.num_layers))

    @cached_property
    def largest_tensor(self) -> int:
        """Elements of the largest single parameter, as a rule an embedding."""
        return max(math.prod(size) for _, size in self.tensors)


def of(config: Mapping[str, Any]) -> ModelShape:
    """The shape of the model that transformers builds from this config.json."""
    given = {key for key, value in config.items() if value is not None}
    needed = WRITTEN_DOWN.get(str(config.get("model_type")))
    return _written_down(config) if needed is not None and needed <= given else on_meta(config)


def with_vocabulary(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The same configuration with an embedding of `size` rows."""
    return dict(config) | {"vocab_size": size}


def _written_down(config: Mapping[str, Any]) -> ModelShape:
    heads = config["num_attention_heads"]
    shape = ModelShape(
        model_type=config["model_type"],
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_heads=heads,
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        tie_embeddings=bool(config.get("tie_word_embeddings")),
        tensors=(),
        head_norms=config["model_type"] == "qwen3",
    )
    return _with_tensors(shape, config)


def _with_tensors(shape: ModelShape, config: Mapping[str, Any]) -> ModelShape:
    embedding = (shape.vocab_size, shape.hidden_size)
    layer = tuple(_layer(shape, config))
    tensors: list[Tensor] = [("model.embed_tokens.weight", embedding)]
    for i in range(shape.num_layers):
        tensors += ((f"model.layers.{i}.{name}", size) for name, size in layer)
    tensors.append(("model.norm.weight", (shape.hidden_size,)))
    if not shape.tie_embeddings:
        tensors.append(("lm_head.weight", embedding))
    return replace(shape, tensors=tuple(tensors))


def _layer(shape: ModelShape, config: Mapping[str, Any]) -> Iterator[Tensor]:
    """Parameters of one decoder layer, in the order in which transformers registers them."""
    kind = shape.model_type
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    biased = kind == "qwen2" or (kind != "mistral" and bool(config.get("attention_bias")))
    for name, rows in (("q", queries), ("k", keys), ("v", keys)):
        yield f"self_attn.{name}_proj.weight", (rows, hidden)
        if biased:
            yield f"self_attn.{name}_proj.bias", (rows,)
    yield "self_attn.o_proj.weight", (hidden, queries)
    if biased and kind != "qwen2":
        yield "self_attn.o_proj.bias", (hidden,)
    if kind == "qwen3":
        yield "self_attn.q_norm.weight", (shape.head_dim,)
        yield "self_attn.k_norm.weight", (shape.head_dim,)
    for name, size in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        yield f"mlp.{name}_proj.weight", size
        if kind == "llama" and config.get("mlp_bias"):
            yield f"mlp.{name}_proj.bias", (size[0],)
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)


def on_meta(config: Mapping[str, Any]) -> ModelShape:
    """The shape of any causal language model that transformers knows, built without storage."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fulltune.loss import head_ends_the_model

    settings = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    text = settings.get_text_config()
    heads = text.num_attention_heads
    return ModelShape(
        model_type=str(settings.model_type),
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        num_heads=heads,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab_size=text.vocab_size,
        tie_embeddings=bool(text.tie_word_embeddings),
        tensors=tuple((name, tuple(parameter.shape)) for name, parameter in model.named_parameters()),
        gated_mlp=any("gate" in name for name, _ in model.named_parameters()),
        head_norms=any("q_norm" in name for name, _ in model.named_parameters()),
        plain_head=head_ends_the_model(settings),
    )
