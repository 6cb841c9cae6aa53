"""What made a tuned model, as far as a report needs it: seed, training rows, hours, and which recipes are alike.

Called by runs, from the files of the run folders that made the model: one, or several stages in a row. The facts become
`Entry.details` of the tuned rows, so `series` and `economy` find them there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from evaluation.economy import HOUR_S, number

# Not part of a setting: where and on how many workers a run took place, what was watched, and what curves run over.
_ASIDE = ("ray", "checkpoint", "validation", "tracking", "report", "stages")
_VARIED = {"train": ("seed",), "data": ("limit",)}
_START = ("name_or_path", "revision")  # of the model section: a later stage starts from a folder of the machine

COVERS = "time in optimizer steps; validation, start-up, saving and lost work are not included"


@dataclass(frozen=True, slots=True)
class Stage:
    """One training run of those that made a model.

    Attributes:
        config: the resolved configuration, as a mapping.
        steps: lines of metrics.jsonl. Time is that of optimizer steps: waiting, starting and lost work are not in it.
        provenance: provenance.json; its manifest of the training split has the number of rows.
    """

    config: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any]

    @property
    def rows(self) -> int | None:
        found = _at(self.provenance, "data", "train", "rows") or _at(self.config, "data", "limit")
        return found if isinstance(found, int) else None

    @property
    def hours(self) -> float | None:
        return worker_hours(self.steps, number(_at(self.config, "ray", "num_workers")))


def facts(stages: Sequence[Stage]) -> dict[str, Any]:
    """`seed`, `training_rows`, `worker_hours`, what these cover, and `setting`; what is not known is left out.

    Rows and hours are those of all stages together, unknown if they are of any one; the seed is the last one's.
    """
    if not stages or not stages[-1].config:
        return {}
    rows = [stage.rows for stage in stages]
    hours = [stage.hours for stage in stages]
    found = {
        "seed": _at(stages[-1].config, "train", "seed"),
        "training_rows": None if None in rows else sum(row for row in rows if row is not None),
        "worker_hours": None if None in hours else round(sum(hour for hour in hours if hour is not None), 4),
        "setting": setting([stage.config for stage in stages]),
    }
    if len(stages) > 1:
        found["stages"] = len(stages)
    if found["worker_hours"] is not None:
        found["worker_hours_cover"] = COVERS + (f"; all {len(stages)} stages together" if len(stages) > 1 else "")
    return {name: value for name, value in found.items() if value is not None}


def sentences(details: Mapping[str, Any]) -> list[str]:
    """What the hours of a tuned model cover, for the section on cost; nothing where they are not known."""
    covers = details.get("worker_hours_cover")
    return [f"The hours of tuning are {covers}."] if isinstance(covers, str) and covers else []


def worker_hours(steps: Iterable[Mapping[str, Any]], workers: float | None) -> float | None:
    """Hours of all workers together that the optimizer steps took; None where nothing was logged.

    A logged step took tokens over tokens per second, and stands for those since the one logged before it; the last one
    also for those up to the last step that any line tells of. So `tracking.log_every_steps` changes nothing, nor do
    attempts: the log is cut back to the step that a run resumes from, and of a step taken twice the later line counts.
    """
    lines = [(step, line) for line in steps if (step := number(line.get("step"))) is not None]
    seconds = {step: spent for step, line in lines if (spent := _seconds(line)) is not None}
    if not seconds or not workers:
        return None
    logged = sorted(seconds)
    total = sum((step - before) * seconds[step] for before, step in pairwise([0.0, *logged]))
    total += (max(step for step, _ in lines) - logged[-1]) * seconds[logged[-1]]
    return round(total * workers / HOUR_S, 4)


def _seconds(line: Mapping[str, Any]) -> float | None:
    tokens, speed = number(line.get("tokens")), number(line.get("tokens_per_s"))
    return tokens / speed if tokens and speed else None


def setting(configs: Sequence[Mapping[str, Any]]) -> str:
    """A short digest of a recipe and its stages: equal for runs that differ in seed, number of rows and place only."""
    kept = [_without_place(config, later=place > 0) for place, config in enumerate(configs)]
    text = json.dumps(kept[0] if len(kept) == 1 else kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _without_place(config: Mapping[str, Any], *, later: bool) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in _ASIDE}
    for name, keys in (_VARIED | ({"model": _START} if later else {})).items():
        if isinstance(kept.get(name), Mapping):
            kept[name] = {key: value for key, value in kept[name].items() if key not in keys}
    return kept


def _at(tree: Mapping[str, Any], *keys: str) -> Any:
    node: Any = tree
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
