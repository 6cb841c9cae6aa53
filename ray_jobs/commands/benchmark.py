"""Models and endpoints x tasks -> predictions -> scores -> reports, from one YAML. The same command goes on."""

from __future__ import annotations

import argparse
import json
import sys

from ray_jobs.commands import recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's file and overrides."""
    parser.add_argument("recipe", help="name of a shipped benchmark, or a path ending in .yaml")
    recipe.add_overrides(parser)
    parser.add_argument("--limit", type=int, help="the first N rows by index of every task")
    parser.add_argument("--json", action="store_true", help="print every result as one JSON object and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Runs it, and prints the headline of every task with its report; 1 where answers are missing."""
    from fulltune import quiet
    from ray_jobs import benchmark, recipes

    quiet.libraries()
    quiet.transformers()
    described = benchmark.read(recipes.path(arguments.recipe, recipes.BENCHMARKS), arguments.overrides)
    if arguments.limit is not None:
        limited = tuple(part.model_copy(update={"limit": arguments.limit}) for part in described.tasks)
        described = described.model_copy(update={"tasks": limited})
    folder = benchmark.run(described, say=recipe.say, arguments=sys.argv)
    results = json.loads((folder / "benchmark.json").read_text())
    if arguments.json:
        print(json.dumps(results))
    else:
        for name, found in results.items():
            print(f"{name}: {found['headline']}")
        print(f"\nreports: {folder / 'index.md'}")
    missing = sum(model["missing"] for found in results.values() for model in found["models"])
    if missing:
        recipe.say(f"{missing} answers are missing; the same command asks for them again")
    return 1 if missing else 0
