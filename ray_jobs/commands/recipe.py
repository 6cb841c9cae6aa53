"""Arguments and output that the commands which take a recipe share."""

from __future__ import annotations

import argparse
import sys

from fulltune import config
from fulltune.config import RunConfig
from ray_jobs import recipes


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """RECIPE and its overrides."""
    parser.add_argument("recipe", help="name of a shipped recipe, or a path ending in .yaml")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """dotted.key=value ..."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the recipe, e.g. ray.num_workers=4"
    )


def add_force(parser: argparse.ArgumentParser) -> None:
    """--force"""
    parser.add_argument("--force", action="store_true", help="start even if by plan the GPUs asked for are too small")


def load(arguments: argparse.Namespace) -> RunConfig:
    """The resolved configuration."""
    return config.load(recipes.path(arguments.recipe), arguments.overrides)


def say(line: str) -> None:
    """A line for the user; standard output is kept for results."""
    print(line, file=sys.stderr, flush=True)
