"""Models and endpoints x tasks -> predictions -> scores -> reports, from one YAML. The same command goes on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ray_jobs.commands import recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's file and overrides."""
    parser.add_argument("recipe", type=Path, help="path of a benchmark in YAML")
    recipe.add_overrides(parser)
    parser.add_argument("--limit", type=int, help="the first N rows by index of every task")
    parser.add_argument("--json", action="store_true", help="print every result as one JSON object and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Runs it, and prints the headline of every task with its report."""
    from fulltune import quiet
    from ray_jobs import benchmark

    quiet.libraries()
    quiet.transformers()
    described = benchmark.read(arguments.recipe, arguments.overrides)
    if arguments.limit is not None:
        limited = tuple(part.model_copy(update={"limit": arguments.limit}) for part in described.tasks)
        described = described.model_copy(update={"tasks": limited})
    folder = benchmark.run(described, say=recipe.say, arguments=sys.argv)
    results = json.loads((folder / "benchmark.json").read_text())
    if arguments.json:
        print(json.dumps(results))
        return 0
    for name, found in results.items():
        print(f"{name}: {found['headline']}")
    print(f"\nreports: {folder / 'index.md'}")
    return 0
