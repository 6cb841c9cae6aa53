"""Model configurations that ship with fulltune, so that plans and tests need no hub: the three sizes of Llama-2.

Dimensions as published in the Llama-2 paper (arXiv 2307.09288) and the models' config.json.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def names() -> tuple[str, ...]:
    """Names of the shipped architectures."""
    return tuple(
        sorted(entry.name.removesuffix(".json") for entry in files(__name__).iterdir() if ".json" in entry.name)
    )


def load(name: str) -> dict[str, Any]:
    """The config.json of an architecture, for example "llama2_7b"."""
    content: dict[str, Any] = json.loads((files(__name__) / f"{name}.json").read_text())
    return content


def count_parameters(config: dict[str, Any]) -> int:
    """Parameters of the model that transformers builds from this configuration, counted on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    return sum(parameter.numel() for parameter in model.parameters())
