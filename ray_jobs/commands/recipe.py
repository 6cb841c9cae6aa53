"""Arguments and output that the commands which take a recipe share."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from fulltune import config
from fulltune.config import RunConfig
from ray_jobs import recipes

if TYPE_CHECKING:
    from fulltune.plan.planner import Options

GIB = 2**30


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


def positive(text: str) -> float:
    """A number above 0 from the command line."""
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text}: wanted a number above 0")
    return value


def whole(text: str) -> int:
    """A whole number above 0 from the command line."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text}: wanted a whole number above 0")
    return value


def add_nodes(parser: argparse.ArgumentParser) -> None:
    """What the plan shall take the nodes for."""
    parser.add_argument("--host-memory", type=positive, metavar="GIB", help="of a node; default: the usual instance's")
    parser.add_argument(
        "--gpus-per-node", type=whole, metavar="N", help="default: the usual instance's, the others in proportion"
    )
    parser.add_argument(
        "--node-network-gbit", type=positive, metavar="GBIT", help="into each node; default: the usual instance's"
    )


def nodes(arguments: argparse.Namespace) -> Options:
    """The plan's options that `add_nodes` reads."""
    from fulltune.plan.planner import Options

    memory, network = arguments.host_memory, arguments.node_network_gbit
    return Options(
        host_memory=int(memory * GIB) if memory else None,
        gpus_per_node=arguments.gpus_per_node,
        node_network=network * 1e9 / 8 if network else None,
    )


def node_arguments(arguments: argparse.Namespace) -> list[str]:
    """The same as words of a command line, for a job."""
    given = {
        "--host-memory": arguments.host_memory,
        "--gpus-per-node": arguments.gpus_per_node,
        "--node-network-gbit": arguments.node_network_gbit,
    }
    return [word for name, value in given.items() if value is not None for word in (name, f"{value:g}")]


def load(arguments: argparse.Namespace) -> RunConfig:
    """The resolved configuration."""
    return config.load(recipes.path(arguments.recipe), arguments.overrides)


def say(line: str) -> None:
    """A line for the user; standard output is kept for results."""
    print(line, file=sys.stderr, flush=True)
