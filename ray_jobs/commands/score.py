"""Score a predictions file against references: every metric with n and a 95 % interval."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.commands import endpoints, recipe

if TYPE_CHECKING:
    from evaluation.score import Scores
    from tasks.base import Task


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
    endpoints.add_readers(parser)


def run(arguments: argparse.Namespace) -> int:
    """Scores, and prints the table or the JSON."""
    import tasks

    task = tasks.get(arguments.task)
    with_models = arguments.extractor or arguments.judge
    scores = _score_with_models(task, arguments) if with_models else _score(task, arguments)
    result = scores.as_json()
    for warning in scores.warnings:
        recipe.say(f"warning: {warning}")
    if arguments.json:
        print(json.dumps(result))
        return 0
    width = max(len(name) for name in result["metrics"])
    print(f"{result['task']} (version {result['task_version']}), n = {result['n']}, missing {result['missing']}")
    for name, entry in result["metrics"].items():
        print(f"  {name:<{width}}  {_figures(entry)}  n {entry['n']}")
    if result["errors"]:
        print("  errors: " + ", ".join(f"{name} {count}" for name, count in result["errors"].items()))
    for name, facts in scores.assisted.items():
        print(f"  {name} by {facts['model']}: {_bill(facts)}")
    return 0


def _score(task: Task, arguments: argparse.Namespace) -> Scores:
    """References and predictions pass by one at a time."""
    from evaluation.pool import TaskSpec
    from evaluation.score import score_file
    from tasks.sources import iterate_references

    return score_file(
        task,
        iterate_references(task, arguments.references, split=arguments.split),
        arguments.predictions,
        limit=arguments.limit,
        processes=arguments.processes,
        spec=TaskSpec(arguments.task),
        out=arguments.out,
    )


def _score_with_models(task: Task, arguments: argparse.Namespace) -> Scores:
    """An extractor or a judge reads the answers after the task has."""
    from evaluation.judge import read_all
    from evaluation.predictions import read_predictions
    from evaluation.score import score, write_scores
    from tasks.sources import read_references

    records = read_references(task, arguments.references, split=arguments.split)
    predictions = read_predictions(arguments.predictions)
    with endpoints.readers(arguments) as readers:
        models = readers(task)(arguments.predictions.stem)
        scores = score(task, records, predictions, limit=arguments.limit, processes=arguments.processes)
        scores = read_all(models, task, records[: arguments.limit], predictions, scores)
    if arguments.out is not None:
        write_scores(arguments.out, scores)
    return scores


def _figures(entry: Mapping[str, Any]) -> str:
    """Mean and interval; no item may have had a value."""
    if entry["mean"] is None:
        return "n/a"
    low, high = entry["ci95"]
    return f"{entry['mean']:.3f}  [{low:.3f}, {high:.3f}]"


def _bill(facts: Mapping[str, Any]) -> str:
    """What a judge or an extractor took, and how far it agreed with itself."""
    cost = "price not known" if facts["cost_usd"] is None else f"${facts['cost_usd']:.6g}"
    failed = ", ".join(f"{kind} {count}" for kind, count in facts["failures"].items()) or "none"
    text = f"{facts['calls']} calls ({facts['retries']} repeated), {cost}, failures: {failed}"
    if found := facts["agreement"]:
        kappa = "n/a" if found["kappa"] is None else f"{found['kappa']:.3f}"
        text += f", equal grades {found['exact']:.3f}, mean difference {found['mean_difference']:.3f}, kappa {kappa}"
    return text
