"""What a model was made of and what its makers allow: base model and data of every stage, for the model card.

    resolved configurations of all stages -> Ingredients -> fulltune.card

A licence is known where somebody says it: the task for its hub data, we for rows that our own code makes, the model
card of the base for the base. What nobody says is unknown, and is called that: a guess would be read as a promise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tasks
from fulltune import lineage
from fulltune.config import MixturePart, ModelConfig, RunConfig
from tasks.base import Task, UserError

OURS = "apache-2.0"  # of rows made by the generators of the built-in tasks
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]*")  # as the hub writes licences


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One thing that a model was made of.

    Attributes:
        what: "base model" or "training data".
        name: shown to readers; of a local file or folder only its own name.
        hub_id: on the Hugging Face hub; None for what does not come from there.
        licence: as the hub writes it; None where it is not known.
        language: of data, a code of ISO 639; "" where it is not said.
    """

    what: str
    name: str
    hub_id: str | None = None
    licence: str | None = None
    language: str = ""


def ingredients(stages: Sequence[RunConfig]) -> list[Ingredient]:
    """The base of the first stage, then the data of all stages in their order; what comes twice stands once.

    Args:
        stages: the runs that made the model, the first one first.
    """
    base = base_of(stages[0].model)
    found = [*([base] if base else []), *(part for run in stages for part in _data(run))]
    return list(dict.fromkeys(found))


def identifier(found: Sequence[Ingredient]) -> str | None:
    """The one licence of all of them in the hub's writing; None where they differ or one of them is not known."""
    known = {one.licence.lower() if one.licence else None for one in found}
    only = known.pop() if len(known) == 1 else None
    return only if only and only != "other" and _IDENTIFIER.fullmatch(only) else None


def base_of(model: ModelConfig) -> Ingredient | None:
    """The model that a run starts from; None for a random initialisation."""
    name = model.name_or_path
    if model.init == "random" or name is None:
        return None
    folder = Path(name).expanduser()
    if folder.is_dir() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        shown = folder.parent.name if folder.name == lineage.EXPORT else folder.name
        return Ingredient("base model", f"{shown} (a local folder)", licence=_of_card(folder / "README.md"))
    return Ingredient("base model", name, hub_id=name, licence=_of_hub(name, model.revision))


def _of_hub(name: str, revision: str | None) -> str | None:
    """The licence that a downloaded model's card names; nothing is fetched for it."""
    from huggingface_hub import try_to_load_from_cache

    card = try_to_load_from_cache(name, "README.md", revision=revision)
    return _of_card(Path(card)) if isinstance(card, str) else None


def _of_card(path: Path) -> str | None:
    import yaml
    from huggingface_hub import metadata_load

    try:
        facts: dict[str, Any] = metadata_load(path) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return None
    licence, name = facts.get("license"), facts.get("license_name")
    if licence == "other":  # not `name` alone: it may be the identifier of a licence that this is not
        return f"other ({name})" if isinstance(name, str) else None
    return licence if isinstance(licence, str) and licence != "unknown" else None


def _data(run: RunConfig) -> list[Ingredient]:
    """The recipe's source, or every part of its mixture."""
    return [_part(run, part) for part in run.data.mixture or (MixturePart(),)]


def _part(run: RunConfig, part: MixturePart) -> Ingredient:
    name, source = part.task or run.task, part.source or run.data.source
    shared = run.task_options if name == run.task else {}
    try:
        task = tasks.get(name, **shared | part.task_options)
    except UserError:  # a file of the user's own that is gone: the card is written without it
        return Ingredient("training data", _file_name(name))
    if source == "hub" and task.hub is not None:
        licence = None if task.hub.licence.lower() == "unknown" else task.hub.licence.lower()
        return Ingredient("training data", task.hub.dataset_id, task.hub.dataset_id, licence, task.language)
    if source == "bundled":
        return Ingredient("training data", f"generated rows of task {task.name}", None, _ours(task), task.language)
    return Ingredient("training data", f"{_file_name(source)} (the user's own, task {task.name})")


def _ours(task: Task) -> str | None:
    """Only what our own generators make is ours to license."""
    module = getattr(task.generate, "__module__", "")
    return OURS if module.startswith("tasks.") else None


def _file_name(path: str) -> str:
    return Path(path).name or path
