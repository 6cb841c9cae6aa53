"""The training engine on DeepSpeed: the only package that imports it."""

from fulltune.engine.core import Engine, build
from fulltune.engine.settings import stage_of
from fulltune.engine.snapshot import Snapshot

__all__ = ["Engine", "Snapshot", "build", "stage_of"]
