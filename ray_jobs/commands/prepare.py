"""Tokenise a recipe's data and build its starting model, once; `train` finds both."""

from __future__ import annotations

import argparse

from ray_jobs.commands import recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE and overrides."""
    recipe.add_recipe(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prepares, and prints the folders."""
    from fulltune import quiet

    quiet.transformers()
    from ray_jobs.prepare import prepare

    inputs = prepare(recipe.load(arguments), say=recipe.say).inputs
    for name in ("model", "train_data", "valid_data"):
        print(f"{name}: {getattr(inputs, name)}")
    return 0
