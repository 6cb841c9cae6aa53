"""A recipe with `stages` is several runs in a row, each a change to the recipe; a later one may start from an earlier.

    stages:
      - {name: extra, data: {source: extra.jsonl}}
      - {name: final, base: "@extra", train: {learning_rate: 1.0e-5}}

Every stage becomes a plain `RunConfig` named `<run>/<stage>`, so checkpoints, resuming and exports work as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fulltune import config
from fulltune.config import RunConfig
from tasks.base import UserError


def expand(run: RunConfig) -> list[RunConfig]:
    """The runs of a recipe in their order; the recipe itself where it has no stages.

    Only the last stage reports unless another one says so.

    Raises:
        UserError: a stage without a name of its own, a base that is no earlier stage, a key that does not exist.
    """
    if not run.stages:
        return [run]
    shared = run.model_dump(mode="json", exclude={"stages"})
    runs: dict[str, RunConfig] = {}
    for number, stage in enumerate(run.stages, start=1):
        name = _name(stage, number, runs)
        changes = {key: value for key, value in stage.items() if key not in ("name", "base")}
        if number < len(run.stages):
            changes.setdefault("report", None)
        tree = _merge(shared, changes)
        tree["ray"]["name"] = f"{run.ray.name}/{name}"
        if "base" in stage:
            tree["model"] |= _start_from(stage["base"], name, runs)
        runs[name] = config.resolve(tree, origin=f"stage {name!r}")
    return list(runs.values())


def _name(stage: Mapping[str, Any], number: int, earlier: Mapping[str, RunConfig]) -> str:
    name = stage.get("name")
    if not isinstance(name, str) or not name or "/" in name or name in earlier:
        raise UserError(
            got=f"stage {number} is named {name!r}",
            wanted="a name of its own, without a slash",
            fix=f"give it one that is not in {sorted(earlier)}",
        )
    return name


def _start_from(base: object, name: str, earlier: Mapping[str, RunConfig]) -> dict[str, Any]:
    """The model section of a stage that starts from the export of an earlier one."""
    source = base.removeprefix("@") if isinstance(base, str) and base.startswith("@") else None
    if source is None or source not in earlier:
        raise UserError(
            got=f"stage {name!r} has base {base!r}",
            wanted="@ and the name of an earlier stage" + (f": {', '.join(earlier)}" if earlier else ""),
            fix="name an earlier stage, or leave base out to start from model.name_or_path",
        )
    folder = earlier[source].run_dir / "export"
    return {"name_or_path": str(folder), "revision": None, "init": "pretrained", "config": {}, "tokenizer": None}


def _merge(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with the changes put over it, section by section."""
    merged = dict(tree)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
