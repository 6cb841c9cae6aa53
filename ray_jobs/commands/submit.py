"""Send a recipe to a Ray cluster as a job, with a lean upload, and follow it to its end."""

from __future__ import annotations

import argparse

from ray_jobs.commands import recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, overrides, the cluster."""
    recipe.add_recipe(parser)
    parser.add_argument(
        "--address", required=True, help="of the cluster's dashboard, for example http://127.0.0.1:8265"
    )
    parser.add_argument("--wait", action="store_true", help="follow the log and return the job's own exit code")
    recipe.add_nodes(parser)
    recipe.add_force(parser)


def run(arguments: argparse.Namespace) -> int:
    """Submits; with --wait, returns the job's exit code."""
    from ray_jobs.plan import refuse_what_cannot_fit
    from ray_jobs.submit import submit

    resolved = recipe.load(arguments)  # a mistake in the recipe is better found here than on the cluster
    if not arguments.force:
        refuse_what_cannot_fit(resolved, recipe.nodes(arguments), say=recipe.say)
    return submit(
        arguments.recipe,
        arguments.overrides,
        address=arguments.address,
        wait=arguments.wait,
        options=recipe.node_arguments(arguments) + (["--force"] if arguments.force else []),
        say=recipe.say,
    )
