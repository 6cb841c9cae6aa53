"""List the tasks, or show one: a raw record, the training text with its supervised part marked, the baseline prompt, a
scored sample."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An optional task."""
    parser.add_argument("name", nargs="?", help="a task's name, or path/to/file.py:TASK")
    parser.add_argument("--source", default="bundled", help="bundled, hub, or a path")
    parser.add_argument("--shots", type=int, default=1, help="worked examples in the baseline prompt shown")


def run(arguments: argparse.Namespace) -> int:
    """Prints the list or the task."""
    import tasks

    if arguments.name is None:
        for name in tasks.names():
            task = tasks.get(name)
            print(f"{name:<22} version {task.version:<4} {task.description}")
        return 0
    _show(arguments)
    return 0


def _show(arguments: argparse.Namespace) -> None:
    import tasks
    from tasks.base import Completion
    from tasks.sources import load

    task = tasks.get(arguments.name)
    records = {split: load(task, split, arguments.source) for split in ("train", "valid", "test")}
    record = records["train"][0]
    score = task.score(record, Completion(task.reference(record)))
    supervised = "".join(f"\033[7m{s.text}\033[0m" if s.loss else s.text for s in task.render(record))
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in records.items())
    _section(f"{task.name}, version {task.version}: {task.description}", f"{arguments.source}: {sizes}")
    _section("record", json.dumps({"id": record.id, **record.fields}, ensure_ascii=False, indent=1, default=str))
    _section("training text (supervised part in reverse video)", supervised)
    _section("baseline prompt", task.baseline_prompt(record, records["train"][1 : 1 + arguments.shots]))
    _section("the reference, scored", f"{dict(score.metrics)}\n{score.why}")
    _section("metrics", "\n".join(f"{m.name:<20} {m.meaning}" for m in task.metrics))
    if task.assisted_metrics:
        lines = (f"{m.name:<20} {m.meaning}" for m in task.assisted_metrics)
        _section("metrics that need --extractor or --judge", "\n".join(lines))
    _section("error categories", "\n".join(f"{name:<20} {text}" for name, text in task.errors.items()))


def _section(title: str, text: str) -> None:
    print(f"\n== {title}\n{text}")
