"""The report over runs or predictions files: report.html, report.md, results.json and plots."""

from __future__ import annotations

import argparse
from pathlib import Path

from ray_jobs.commands import endpoints


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to compare and where to write."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN_OR_PREDICTIONS")
    parser.add_argument("--out", required=True, type=Path, help="folder of the report")
    parser.add_argument("--task", help="default: what the predictions say")
    parser.add_argument("--references", type=Path, help="default: the source of the predictions")
    parser.add_argument("--split", help="default: what the predictions say")
    parser.add_argument("--source", help="bundled, hub, or a path; default: what the predictions say")
    parser.add_argument("--limit", type=int, help="the first N rows by index")
    parser.add_argument("--title")
    endpoints.add_readers(parser)
    parser.add_argument("--leaks", type=Path, help="JSON: record id -> why it may have been seen in training")
    parser.add_argument(
        "--usd-per-worker-hour",
        type=float,
        help="price of a worker (a GPU, or a CPU process), for costs",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the report, and prints where it is."""
    from evaluation.runs import compare_paths

    names = ("task", "references", "split", "source", "limit", "title", "leaks", "usd_per_worker_hour")
    given = {name: getattr(arguments, name) for name in names}
    settings = {name: value for name, value in given.items() if value is not None}
    with endpoints.readers(arguments) as readers:
        compare_paths(arguments.paths, out=arguments.out, readers=readers, **settings)
    print(f"report: {arguments.out / 'report.html'}")
    return 0
