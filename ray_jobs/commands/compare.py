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


def run(arguments: argparse.Namespace) -> int:
    """Writes the report, and prints where it is."""
    from evaluation.runs import compare_paths

    given = {name: getattr(arguments, name) for name in ("task", "references", "split", "source", "limit", "title")}
    settings = {name: value for name, value in given.items() if value is not None}
    with endpoints.readers(arguments) as readers:
        compare_paths(arguments.paths, out=arguments.out, readers=readers, **settings)
    print(f"report: {arguments.out / 'report.html'}")
    return 0
