"""The training engine on DeepSpeed: the only package that imports it.

The names are loaded when they are asked for, so that `fulltune.engine.settings`, which a plan reads, is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulltune.engine.core import Engine, build
    from fulltune.engine.settings import stage_of

__all__ = ["Engine", "build", "stage_of"]

_HOMES = {"Engine": "core", "build": "core", "stage_of": "settings"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
