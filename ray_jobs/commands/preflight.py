"""Try a recipe on the machines it will run on: workers, storage, network, access, and one worst-case step, in minutes.

Joins the cluster of RAY_ADDRESS, or takes this machine. Ends with go (exit code 0) or no-go (1), and for each no-go
with what was found, what is wanted, and what to change. Nothing is trained; data and model are prepared as by `train`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from ray_jobs.commands import recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, overrides, limits."""
    recipe.add_recipe(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object (docs/preflight.md)")
    parser.add_argument("--gpu", metavar="NAME", help="plan for this type of GPU; default: ray.accelerator_type")
    parser.add_argument(
        "--price", type=recipe.positive, metavar="USD", help="per GPU and hour, instead of the listed price"
    )
    recipe.add_nodes(parser)
    parser.add_argument("--timeout-s", type=recipe.positive, default=900.0, help="the longest wait for one stage (900)")


def run(arguments: argparse.Namespace) -> int:
    """Prints the checks; returns 0 for go, 1 for no-go."""
    from fulltune import quiet

    quiet.libraries()
    quiet.transformers()
    from fulltune.preflight import report
    from fulltune.stages import expand
    from ray_jobs.preflight import Options, preflight

    options = Options(
        plan=replace(recipe.nodes(arguments), gpu=arguments.gpu, usd_per_hour=arguments.price),
        timeout_s=arguments.timeout_s,
    )
    first, *later = expand(recipe.load(arguments))
    if later:
        recipe.say(f"{len(later) + 1} stages: trying the first, {first.ray.name}")
    found = preflight(first, options, say=recipe.say)
    print(json.dumps(report.as_json(found), indent=1) if arguments.json else report.text(found))
    return 0 if found.go else 1
