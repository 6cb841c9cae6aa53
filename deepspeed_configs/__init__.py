"""DeepSpeed's configuration as DeepSpeed reads it: one JSON file per choice of ZeRO stage and offload.

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


def names() -> tuple[str, ...]:
    """The names of the shipped configurations, sorted."""
    return tuple(sorted(f.name.removesuffix(_SUFFIX) for f in files(__name__).iterdir() if f.name.endswith(_SUFFIX)))


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
