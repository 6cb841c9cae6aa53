"""The training engine on DeepSpeed: the only package that imports it."""

from fulltune.engine.core import Engine, build
from fulltune.engine.settings import stage_of

__all__ = ["Engine", "build", "stage_of"]
