"""Recipes that ship with fulltune: one YAML file per run a user would start; benchmarks have a folder of their own."""

from __future__ import annotations

import difflib
from pathlib import Path

from tasks.base import UserError

FOLDER = Path(__file__).parent
BENCHMARKS = FOLDER / "benchmarks"


def names(folder: Path = FOLDER) -> tuple[str, ...]:
    """Names of the shipped recipes: of training runs, or of benchmarks."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def path(recipe: str, folder: Path = FOLDER) -> Path:
    """The file of a recipe: a path if it ends in .yaml, else a name that is shipped in the folder.

    Raises:
        UserError: no recipe of that name.
    """
    if recipe.endswith((".yaml", ".yml")):
        return Path(recipe).expanduser()
    if recipe in names(folder):
        return folder / f"{recipe}.yaml"
    near = difflib.get_close_matches(recipe, names(folder), n=1, cutoff=0.4)
    raise UserError(
        got=f"recipe {recipe!r}",
        wanted=f"one of {', '.join(names(folder))}, or a path ending in .yaml",
        fix=f"did you mean {near[0]!r}?" if near else "pick a name, or write the path with its ending",
    )
