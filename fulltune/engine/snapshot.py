"""A worker's shard as it is at one moment, copied into host memory so that it can be written beside the training.

DeepSpeed decides what a shard holds and hands every file to its checkpoint engine. `Recorder` is such an engine: in
place of writing it copies the tensors, and leaves the writing to whoever takes the copies. One shard's worth of host
memory is the price.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TAG = "state"  # the folder inside a checkpoint that DeepSpeed writes to


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of one worker, not yet written.

    Attributes:
        states: path below the checkpoint -> what `torch.save` shall write there.
        scratch: folder on the same file system with files that DeepSpeed wrote itself (states on NVMe); they move.
    """

    states: Mapping[str, Any]
    scratch: Path

    @property
    def bytes(self) -> int:
        """Bytes of all tensors, tied ones once, and of files that are already there."""
        copies = {id(tensor): tensor.nbytes for state in self.states.values() for tensor in _tensors(state)}
        return sum(copies.values()) + sum(file.stat().st_size for file in self._others())

    def write(self, folder: Path) -> list[Path]:
        """Writes the files below `folder` and returns their paths."""
        written = []
        for relative, state in self.states.items():
            file = folder / relative
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, file)
            written.append(file)
        for other in self._others():
            file = folder / other.relative_to(self.scratch)
            file.parent.mkdir(parents=True, exist_ok=True)
            os.replace(other, file)
            written.append(file)
        shutil.rmtree(self.scratch)
        return written

    def _others(self) -> list[Path]:
        """A checkpoint holds data, not programs to run: DeepSpeed's recovery scripts stay out."""
        return sorted(path for path in self.scratch.rglob("*") if path.is_file() and path.suffix != ".py")


class Recorder:
    """DeepSpeed's checkpoint engine (its interface, runtime/checkpoint_engine) that copies in place of writing."""

    def __init__(self) -> None:
        self.states: dict[str, Any] = {}

    def create(self, info: Any) -> None:
        """A save begins; `info.save_dir` is its folder."""
        self._root = Path(info.save_dir)
        self.states = {}

    def save(self, state_dict: Any, path: str) -> None:
        """Copies one file's content."""
        self.states[str(Path(path).relative_to(self._root))] = host_copy(state_dict, {})

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Folders are made when files are written."""

    def commit(self, info: Any) -> bool:
        """Publishing is not DeepSpeed's."""
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        """Unsharded states are the first worker's."""
        return dp_rank == 0

    def is_decoupled(self) -> bool:
        """Whether DeepSpeed shall call `commit` at the next step: no."""
        return False

    def preserves_storage_sharing(self) -> bool:
        """Whether views would drag their whole storage along, so that DeepSpeed copies them first: no."""
        return False


def host_copy(value: Any, seen: dict[tuple[Any, ...], torch.Tensor]) -> Any:
    """A deep copy with every tensor in host memory; equal views become one tensor again."""
    if isinstance(value, torch.Tensor):
        key = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), value.device)
        if value.numel() == 0 or key not in seen:
            seen[key] = value.detach().to("cpu", copy=True)
        return seen[key]
    if isinstance(value, dict):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        return kind((name, host_copy(item, seen)) for name, item in value.items())
    if isinstance(value, list):
        return [host_copy(item, seen) for item in value]
    if type(value) is tuple:
        return tuple(host_copy(item, seen) for item in value)
    return copy.deepcopy(value)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
