"""Which runs made a model: a run that starts from the export of another continues it (`fulltune.stages`).

    <storage>/<name>/first/config.yaml  export/        <- model.name_or_path of the second
    <storage>/<name>/second/config.yaml

Read by whoever counts what a model took (`evaluation.runs`) or says what it was made of (`fulltune.card`). Only files
are looked at: neither torch nor a checkpoint is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXPORT = "export"  # folder of a run that a later stage starts from
CONFIG = "config.yaml"


def folders(run: Path) -> list[Path]:
    """The run folders that made the model of `run`, the first one first and `run` itself last."""
    found = [run]
    while (earlier := _started_from(found[0])) is not None and earlier not in found:
        found.insert(0, earlier)
    return found


def source_run(config: Mapping[str, Any], run: Path) -> Path | None:
    """The run folder whose export the run of this configuration started from; None where it is no export of a run.

    Args:
        config: the resolved configuration, as a mapping.
        run: its folder. Stages lie side by side, so a family of runs that was moved is found beside it.
    """
    model = config.get("model")
    name = model.get("name_or_path") if isinstance(model, Mapping) and model.get("init") != "random" else None
    if not isinstance(name, str) or Path(name).name != EXPORT:
        return None
    source = Path(name).expanduser().parent
    for folder in (source, run.parent / source.name):
        if (folder / CONFIG).is_file() and folder.resolve() != run.resolve():
            return folder
    return None


def _started_from(run: Path) -> Path | None:
    import yaml

    path = run / CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError):
        return None  # whoever reads the settings says what is wrong with them
    return source_run(config, run) if isinstance(config, Mapping) else None
