"""The README of an exported model: what it is, what it scores, how it was made, how to prompt it, what its data allow.

    runs that made the model + figures of a report (if there is one) -> README.md in the form of the Hugging Face hub

Knows nothing of reports: `ray_jobs.export` hands the figures over as plain values, and writes the card again when a
report is new. No path of the machine gets into a card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fulltune import licences, lineage
from fulltune.config import RunConfig
from fulltune.licences import Ingredient
from tasks.base import Task

LIBRARY = "transformers"
PIPELINE = "text-generation"
NOT_HERE = {"storage_path", "upload_to", "base_url", "stages"}  # settings that mean nothing on another machine


@dataclass(frozen=True, slots=True)
class Stage:
    """One of the runs that made the model.

    Attributes:
        config: resolved.
        step: of the checkpoint that went on; None where that is not known.
        provenance: its provenance.json; empty where there is none.
    """

    config: RunConfig
    step: int | None
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Value:
    """One metric of the tuned model: a number for the hub's index, and in words what it means and how sure it is."""

    name: str
    words: str
    value: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What a report says, in plain values.

    Attributes:
        headline: its first sentence.
        table: models and metrics with intervals and n, in Markdown.
        asked: which records, in words.
        dataset, dataset_id, split: of these records, for the hub's index.
        values: metrics of the tuned model.
    """

    headline: str
    table: str
    asked: str
    dataset: str
    dataset_id: str
    split: str
    values: tuple[Value, ...]


def text(stages: Sequence[Stage], task: Task, figures: Figures | None = None) -> str:
    """A model card in the hub's form.

    Args:
        stages: the runs that made the model, the first one first.
        task: what the last of them trained.
        figures: None before there is a report.
    """
    made_of = licences.ingredients([stage.config for stage in stages])
    name = str(stages[-1].config.ray.name)
    head = yaml.safe_dump(metadata(name, made_of, task, figures), sort_keys=False, allow_unicode=True)
    base = next((one.name for one in made_of if one.what == "base model"), "A random initialisation")
    order = f" in {len(stages)} stages, the last one" if len(stages) > 1 else ""
    how = f"every parameter tuned by next-token prediction{order} on the task `{task.name}`"
    parts = [
        f"---\n{head}---\n# {name}",
        f"{base}, {how} ({task.description}).",
        _results(figures),
        _training(stages, task),
        _licences(made_of),
        _prompt(task),
        _reproduce(stages),
    ]
    return "\n\n".join(parts) + "\n"


def metadata(name: str, made_of: Sequence[Ingredient], task: Task, figures: Figures | None) -> dict[str, Any]:
    """The hub's metadata; keys whose value does not follow from what is known are left out."""
    base = next((one.hub_id for one in made_of if one.what == "base model"), None)
    data = [one for one in made_of if one.what == "training data"]
    licence = licences.identifier(made_of)
    other = {"license": "other", "license_name": "see-licences-in-the-model-card", "license_link": "README.md"}
    found: dict[str, Any] = {
        "language": list(dict.fromkeys(one.language for one in data if one.language)),
        **({"license": licence} if licence else other),
        "library_name": LIBRARY,
        "pipeline_tag": PIPELINE,
        "base_model": base,
        "base_model_relation": "finetune" if base else None,
        "datasets": [one.hub_id for one in data if one.hub_id],
        "tags": ["fulltune", task.name],
        "model-index": [_index(name, task, figures)] if figures and figures.values else None,
    }
    return {key: value for key, value in found.items() if value}


def _index(name: str, task: Task, figures: Figures) -> dict[str, Any]:
    """One entry of `model-index`: task, data set and metrics (the form that huggingface_hub's EvalResult reads)."""
    dataset = {"name": figures.dataset, "type": figures.dataset_id, "split": figures.split}
    metrics = [{"type": one.name, "name": one.words, "value": one.value} for one in figures.values]
    return {"name": name, "results": [{"task": {"type": PIPELINE, "name": task.name}, "dataset": dataset,
                                       "metrics": metrics}]}  # fmt: skip


def _results(figures: Figures | None) -> str:
    if figures is None:
        return "## Results\n\nNot measured: this export has no report. `fulltune train` with `report:` makes one."
    return (
        f"## Results\n\n**{figures.headline}**\n\n{figures.table}\n\n{figures.asked} Brackets hold 95 % intervals. "
        "Scores belong to this data set, this prompt and this version of the task."
    )


def _training(stages: Sequence[Stage], task: Task) -> str:
    last = stages[-1].provenance
    versions = ", ".join(f"{name} {version}" for name, version in last.get("versions", {}).items())
    rows = ["| stage | task | examples | optimizer steps | learning rate | loss on |", "|---|---|--:|--:|---|---|"]
    for stage in stages:
        config, train = stage.config, stage.config.train
        steps = "not known" if stage.step is None else f"{stage.step} of {train.global_batch_size} examples"
        rate = f"{train.learning_rate:g}, {train.lr_scheduler}, {train.warmup_steps} warm-up steps"
        cells = [config.ray.name, _here(config.task), _examples(stage), steps, rate, config.data.loss_on]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    code = last.get("git") or "revision not recorded"
    made_with = f"fulltune {code}" + (f" ({versions})" if versions else "")
    return "## Training\n\n" + "\n".join(rows) + f"\n\nTask version {task.version}. Code: {made_with}."


def _examples(stage: Stage) -> str:
    rows = stage.provenance.get("data", {}).get("train", {}).get("rows")
    return f"{rows:,}" if isinstance(rows, int) else "not known"


def _licences(made_of: Sequence[Ingredient]) -> str:
    rows = ["| what | name | licence |", "|---|---|---|"]
    for one in made_of:
        known = one.licence or "unknown to fulltune: ask its owner"
        rows.append(f"| {one.what} | {one.name} | {known} |")
    if any(one.licence is None for one in made_of):
        rows += ["", "What is unknown has to be cleared before the model is passed on."]
    return "## Licences of what it was made of\n\n" + "\n".join(rows)


def _prompt(task: Task) -> str:
    tokens = ", ".join(f"`{token}`" for token in task.special_tokens) or "none"
    return f"""## Prompt

The model answers in the task's structured format and ends with `{task.stop or "EOS"}`, which `generation_config.json`
names as a stop token. Decode with `skip_special_tokens=False` and cut at the stop token. Special tokens: {tokens}."""


def _reproduce(stages: Sequence[Stage]) -> str:
    """Every stage as a recipe of its own: settings that are not the defaults, without paths of a machine."""
    parts = ["## How to reproduce", "One recipe per stage; `fulltune train FILE` for each, in this order."]
    earlier: RunConfig | None = None
    for stage in stages:
        tree = stage.config.model_dump(mode="json", exclude_defaults=True)
        if earlier is not None:
            tree["model"]["name_or_path"] = f"runs/{earlier.ray.name}/{lineage.EXPORT}"
        file = str(stage.config.ray.name).replace("/", "_")
        recipe = yaml.safe_dump(_portable(tree), sort_keys=False, allow_unicode=True)
        parts.append(f"`{file}.yaml`:\n\n```yaml\n{recipe}```")
        earlier = stage.config
    return "\n\n".join(parts)


def _portable(value: Any) -> Any:
    """The same tree without settings of a machine, absolute paths cut to their last part."""
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items() if key not in NOT_HERE}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    return _here(value) if isinstance(value, str) else value


def _here(path: str) -> str:
    return Path(path).name if path.startswith(("/", "~")) else path
