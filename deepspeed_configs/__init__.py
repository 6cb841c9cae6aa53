"""DeepSpeed's configuration as DeepSpeed reads it: one JSON file per choice of sharding and offload, and size of model.

A recipe names one of them (`deepspeed: zero3`), or gives a path or a mapping of its own. The files hold the choice of
sharding only; the engine adds what the run decides: batch sizes, clipping, precision. docs/deepspeed.md gives the
reason for every field.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from importlib.resources import files
from typing import Any

_SUFFIX = ".json"
# sharding schemes from the one that moves least to the one that moves most; each but zero0 comes in every size
SCHEMES = (
    "zero0", "zero1", "zero2", "zero3", "zero3_hpz", "zero3_offload", "zero3_offload_all", "zero3_nvme"
)  # fmt: skip
# hidden sizes from which the buckets of a size are taken; below all of them, and without a suffix, the general file
SIZES = {"7b": 4096, "13b": 5120, "70b": 8192}
AUTO = "auto"  # not a file: the plan names one


def names() -> tuple[str, ...]:
    """The names of the shipped configurations, sorted."""
    return tuple(sorted(f.name.removesuffix(_SUFFIX) for f in files(__name__).iterdir() if f.name.endswith(_SUFFIX)))


def sized(scheme: str, hidden_size: int) -> str:
    """The file of a scheme for a model of this hidden size, for example zero3_7b; `scheme` itself for a small one."""
    fitting = [size for size, hidden in SIZES.items() if hidden <= hidden_size]
    return f"{scheme}_{fitting[-1]}" if fitting and scheme != SCHEMES[0] else scheme


def scheme(name: str) -> str:
    """The scheme of a file that `sized` named."""
    stem, _, size = name.rpartition("_")
    return stem if size in SIZES else name


def load(name: str) -> dict[str, Any]:
    """The configuration of that name, a fresh copy on every call.

    Raises:
        LookupError: there is none of that name; the message has the known ones and the nearest.
    """
    known = names()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        advice = f"; did you mean {near[0]!r}?" if near else ""
        raise LookupError(f"no DeepSpeed configuration {name!r}, only {', '.join(known)}{advice}")
    config: dict[str, Any] = json.loads(files(__name__).joinpath(name + _SUFFIX).read_text(encoding="utf-8"))
    return config
