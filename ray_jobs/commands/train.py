"""Train a recipe on Ray, then export and report if the recipe asks for a report. The same command resumes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from ray_jobs.commands import recipe
from tasks.base import UserError

if TYPE_CHECKING:
    from fulltune.config import RunConfig
    from fulltune.plan.planner import Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, overrides, and two ways to look without training."""
    recipe.add_recipe(parser)
    parser.add_argument("--print-config", action="store_true", help="show the resolved configuration and stop")
    parser.add_argument("--json-schema", action="store_true", help="show the JSON schema of recipes and stop")
    parser.add_argument("--no-report", action="store_true", help="stop after the last checkpoint")
    recipe.add_nodes(parser)
    recipe.add_force(parser)


def run(arguments: argparse.Namespace) -> int:
    """Trains; returns 0 when the last step is done."""
    from fulltune import config

    if arguments.json_schema:
        print(json.dumps(config.RunConfig.model_json_schema(), indent=1))
        return 0
    resolved, nodes = recipe.load(arguments), recipe.nodes(arguments)
    if arguments.print_config:
        print(config.dump(_with_sharding(resolved, nodes)), end="")
        return 0
    joins = "RAY_ADDRESS" in os.environ  # a cluster that is there knows its nodes
    if not arguments.force and not joins:
        from ray_jobs.plan import refuse_what_cannot_fit

        refuse_what_cannot_fit(resolved, _as_here(resolved, nodes), say=recipe.say)
    return train_and_report(resolved, with_report=not arguments.no_report, nodes=nodes, force=arguments.force)


def _as_here(resolved: RunConfig, nodes: Options) -> Options:
    """The options with what this machine has where the user said nothing: a run that joins no cluster takes place here.

    Unchanged without a GPU to start on. Memory is all there is, not what is free now: once Ray has started, the plan is
    asked again with what Ray found.
    """
    from fulltune import device
    from fulltune.preflight import facts

    gpus = device.gpu_count() if resolved.ray.use_gpu else 0
    if not gpus:
        return nodes
    memory = nodes.host_memory or facts.host_memory()[0]
    return replace(nodes, host_memory=memory, gpus_per_node=nodes.gpus_per_node or gpus)


def _with_sharding(resolved: RunConfig, nodes: Options) -> RunConfig:
    """`deepspeed: auto` as the run would find it; left as it is where that needs the network."""
    from ray_jobs import auto

    try:
        return auto.decided(resolved, nodes, fetch=False, say=recipe.say, force=True)
    except UserError as error:
        recipe.say(f"deepspeed stays auto for now: {error.got}")
        return resolved


def train_and_report(resolved: object, *, with_report: bool, nodes: Options | None = None, force: bool = False) -> int:
    """The run and what follows it.

    Args:
        nodes: what the plan shall take the nodes for.
        force: start also what by plan does not fit the nodes that Ray has.
    """
    from fulltune import quiet
    from fulltune.config import RunConfig

    quiet.libraries()
    quiet.transformers()
    from fulltune import lineage
    from fulltune.stages import expand
    from ray_jobs import cluster, export, report
    from ray_jobs.plan import USUAL, refuse_what_cannot_fit
    from ray_jobs.train import RunEnded, train

    assert isinstance(resolved, RunConfig), resolved
    *earlier, last = expand(resolved)
    try:
        with cluster.connected():
            if not force:
                refuse_what_cannot_fit(
                    resolved, cluster.with_gpu(resolved.ray, nodes or USUAL, certain=True), say=recipe.say
                )
            for stage in earlier:
                checkpoint = train(stage, arguments=sys.argv, nodes=nodes, force=force, say=recipe.say)
                export.export_run(stage, checkpoint, stage.run_dir / lineage.EXPORT)
                if stage.report is not None and with_report:
                    report.report(stage, checkpoint, say=recipe.say)
            checkpoint = train(last, arguments=sys.argv, nodes=nodes, force=force, say=recipe.say)
            if last.report is None or not with_report:
                print(checkpoint)
                return 0
            folder = report.report(last, checkpoint, say=recipe.say)
    except RunEnded as error:
        print(error, file=sys.stderr)
        return 1
    print(report.summary(folder))
    print(f"\nreport: {folder / 'report.html'}")
    return 0
