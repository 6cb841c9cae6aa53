"""The training engine on DeepSpeed: the only package that imports it."""

from fulltune.engine.core import Engine, build

__all__ = ["Engine", "build"]
