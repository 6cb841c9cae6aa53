"""What made a tuned model, as far as a report needs it: seed, training rows, hours, and which recipes are alike.

Called by runs (from the files of a run folder) and by the report that follows a training run. The facts become
`Entry.details` of the tuned rows, so `series` and `economy` find them there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from evaluation.economy import HOUR_S, number

# Not part of a setting: where and on how many workers a run took place, what was watched, and what curves run over.
_ASIDE = ("ray", "checkpoint", "validation", "tracking", "report", "stages")
_VARIED = {"train": ("seed",), "data": ("limit",)}


def facts(
    config: Mapping[str, Any], steps: Iterable[Mapping[str, Any]], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """`seed`, `training_rows`, `worker_hours` and `setting` of a run; what is not known is left out.

    Args:
        config: the resolved configuration, as a mapping.
        steps: lines of metrics.jsonl. Time is that of logged steps: waiting, starting and lost work are not in it.
        provenance: provenance.json; its manifest of the training split has the number of rows.
    """
    if not config:
        return {}
    rows = _at(provenance, "data", "train", "rows") or _at(config, "data", "limit")
    found = {
        "seed": _at(config, "train", "seed"),
        "training_rows": rows,
        "worker_hours": worker_hours(steps, number(_at(config, "ray", "num_workers"))),
        "setting": setting(config),
    }
    return {name: value for name, value in found.items() if value is not None}


def worker_hours(steps: Iterable[Mapping[str, Any]], workers: float | None) -> float | None:
    """Hours of all workers together that the steps took: tokens over tokens per second; None where not logged."""
    seconds = [
        tokens / speed
        for step in steps
        if (tokens := number(step.get("tokens"))) and (speed := number(step.get("tokens_per_s")))
    ]
    return round(sum(seconds) * workers / HOUR_S, 4) if seconds and workers else None


def setting(config: Mapping[str, Any]) -> str:
    """A short digest of the recipe: equal for runs that differ in seed, number of rows and place only."""
    kept = {name: value for name, value in config.items() if name not in _ASIDE}
    for name, keys in _VARIED.items():
        if isinstance(kept.get(name), Mapping):
            kept[name] = {key: value for key, value in kept[name].items() if key not in keys}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _at(tree: Mapping[str, Any], *keys: str) -> Any:
    node: Any = tree
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
