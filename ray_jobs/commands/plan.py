"""What a recipe will need, before anything is spent: memory per GPU and host, disk, steps, time and cost, all planned.

Needs no GPU, no cluster, no weights and no network. Exit code 0 if it fits, 1 if it does not.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from ray_jobs.commands import recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, overrides, the hardware."""
    recipe.add_recipe(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object (docs/plan.schema.json)")
    parser.add_argument("--gpu", metavar="NAME", help="plan for this type of GPU, for example A100-80")
    parser.add_argument(
        "--price", type=recipe.positive, metavar="USD", help="per GPU and hour, instead of the listed price"
    )
    recipe.add_nodes(parser)
    parser.add_argument("--fetch", action="store_true", help="let config.json, tokenizer and data come from the hub")


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan."""
    from fulltune.plan import report
    from ray_jobs.plan import plans

    options = replace(recipe.nodes(arguments), gpu=arguments.gpu, usd_per_hour=arguments.price)
    resolved = recipe.load(arguments)
    found = plans(resolved, options, fetch=arguments.fetch, say=recipe.say)
    if resolved.stages:
        name = str(resolved.ray.name)
        print(json.dumps(report.stages_as_json(name, found), indent=1) if arguments.json else
              report.stages_text(name, found))  # fmt: skip
    else:
        print(json.dumps(report.as_json(found[0]), indent=1) if arguments.json else report.text(found[0]))
    return 0 if all(stage.fits for stage in found) else 1
