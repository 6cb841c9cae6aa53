"""Score a predictions file against references: every metric with n and a 95 % interval."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ray_jobs.commands import recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Task, references, predictions."""
    parser.add_argument("--task", required=True, help="a task's name, or path/to/file.py:TASK")
    parser.add_argument(
        "--references", required=True, type=Path, help="CSV, JSON, JSONL or Parquet in the task's columns"
    )
    parser.add_argument("--predictions", required=True, type=Path, help="predictions.jsonl")
    parser.add_argument("--split", help="names rows without an id; default: the file's stem")
    parser.add_argument("--out", type=Path, help="folder for scores.jsonl and metrics.json")
    parser.add_argument("--limit", type=int, help="the first N rows by index")
    parser.add_argument("--processes", type=int, help="default: one per core")
    parser.add_argument("--json", action="store_true", help="print metrics.json and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Scores, and prints the table or the JSON."""
    import tasks
    from evaluation.pool import TaskSpec
    from evaluation.score import score_file
    from tasks.sources import iterate_references

    task = tasks.get(arguments.task)
    scores = score_file(
        task,
        iterate_references(task, arguments.references, split=arguments.split),
        arguments.predictions,
        limit=arguments.limit,
        processes=arguments.processes,
        spec=TaskSpec(arguments.task),
        out=arguments.out,
    )
    result = scores.as_json()
    if arguments.json:
        print(json.dumps(result))
        return 0
    for warning in scores.warnings:
        recipe.say(f"warning: {warning}")
    width = max(len(name) for name in result["metrics"])
    print(f"{result['task']} (version {result['task_version']}), n = {result['n']}, missing {result['missing']}")
    for name, entry in result["metrics"].items():
        low, high = entry["ci95"]
        print(f"  {name:<{width}}  {entry['mean']:.3f}  [{low:.3f}, {high:.3f}]  n {entry['n']}")
    if result["errors"]:
        print("  errors: " + ", ".join(f"{name} {count}" for name, count in result["errors"].items()))
    return 0
