"""The whole story on a CPU in minutes, on bundled data: train on two Ray workers, score before and after, report."""

from __future__ import annotations

import argparse

from ray_jobs.commands import recipe, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Overrides of the recipe `demo`."""
    recipe.add_overrides(parser)
    parser.set_defaults(recipe="demo")


def run(arguments: argparse.Namespace) -> int:
    """Trains the recipe `demo` and reports."""
    return train.train_and_report(recipe.load(arguments), with_report=True)
