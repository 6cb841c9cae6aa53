"""List the tasks, or show one: a raw record, the training text with its supervised part marked, the baseline prompt,
scored samples, facts about the data, and questions that stand in two splits."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.commands import recipe
from tasks.base import SPLITS, Completion, Record, Task, UserError

if TYPE_CHECKING:
    from tasks.sources import Loaded

_MOST_LEAKS_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An optional task, and what to show of it."""
    parser.add_argument("name", nargs="?", help="a task's name, or path/to/file.py:TASK")
    parser.add_argument("--source", default="bundled", help="bundled, hub, or a path")
    parser.add_argument("--split", action="append", choices=SPLITS, help="may be repeated; default: all there are")
    parser.add_argument("--shots", type=int, default=2, help="worked examples in the baseline prompt")
    parser.add_argument("--out", type=Path, help="write leaks.json here: record id -> why it leaks")
    parser.add_argument("--pin", type=Path, metavar="FIXTURE", help="add this version's fingerprint, and stop")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Prints the list or the task."""
    import tasks
    from evaluation import jsonl

    if arguments.name is None:
        return _list(as_json=arguments.json)
    task = tasks.get(arguments.name)
    if arguments.pin is not None:
        from tasks.versions import pin

        print(f"{task.name} version {task.version}: {pin(task, arguments.pin)}")
        return 0
    shown = _described(task, arguments)
    if arguments.out is not None:
        jsonl.write_text(arguments.out, jsonl.dump(shown["leaks"]["records"], indent=1) + "\n")
    if arguments.json:
        print(jsonl.dump(shown))
    else:
        _print(task, shown)
    return 0


def _list(*, as_json: bool) -> int:
    import tasks
    from evaluation import jsonl

    found = [tasks.get(name) for name in tasks.names()]
    if as_json:
        rows = [{"name": task.name, "version": task.version, "description": task.description} for task in found]
        print(jsonl.dump({"tasks": rows}))
        return 0
    for task in found:
        print(f"{task.name:<22} version {task.version:<4} {task.description}")
    return 0


def _described(task: Task, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything there is to show, as JSON."""
    from evaluation.facts import facts_of
    from evaluation.leaks import find_leaks
    from tasks.shots import pick

    loaded = _load(task, arguments.source, arguments.split)
    splits = {split: one.records for split, one in loaded.items() if one.records}
    if not splits:
        raise UserError(
            got=f"{arguments.source}: no row that task {task.name} accepts",
            wanted="at least one usable record",
            fix="check the source and its columns",
        )
    records = next(iter(splits.values()))
    shots = {
        split: pick(task, arguments.shots, splits["train"], rows)
        for split, rows in splits.items()
        if "train" in splits and split != "train"
    }
    leaks = find_leaks(task, splits, shots)
    return {
        "task": task.name,
        "version": task.version,
        "description": task.description,
        "source": arguments.source,
        **_sample(task, records, pick(task, min(arguments.shots, len(records) - 1), records, records[:1])),
        "metrics": {metric.name: metric.meaning for metric in task.metrics},
        "assisted_metrics": {metric.name: metric.meaning for metric in task.assisted_metrics},
        "errors": dict(task.errors),
        "splits": {split: facts_of(task, one).as_json() for split, one in loaded.items()},
        "leaks": {"overlaps": [overlap.as_json() for overlap in leaks.overlaps], "records": leaks.reasons()},
    }


def _load(task: Task, source: str, wanted: Sequence[str] | None) -> dict[str, Loaded]:
    """The splits asked for; without a wish, those that the source has. One file is one split."""
    from tasks.sources import load_with_report

    if wanted is None and Path(source).expanduser().is_file():
        stem = Path(source).stem
        wanted = (stem if stem in SPLITS else "test",)
    if wanted is not None:
        return {split: load_with_report(task, split, source) for split in sorted(set(wanted), key=SPLITS.index)}
    loaded: dict[str, Loaded] = {}
    for split in SPLITS:
        if source != "bundled":
            recipe.say(f"{task.name}: reading split {split} of {source}")
        try:
            loaded[split] = load_with_report(task, split, source)
        except UserError as error:
            if split == SPLITS[-1] and not loaded:
                raise
            recipe.say(f"no split {split}: {error.got}")
    return loaded


def _sample(task: Task, records: Sequence[Record], shots: Sequence[Record]) -> dict[str, Any]:
    """One record through every stage, and two answers to it: its own reference and that of another record."""
    record = records[0]
    gold = task.reference(record)
    other = next((text for text in map(task.reference, records) if text != gold), "")
    scored = [(answer, task.score(record, Completion(answer))) for answer in (gold, other)]
    return {
        "record": {"id": record.id, **record.fields},
        "training_text": [asdict(segment) for segment in task.render(record)],
        "prompt": task.baseline_prompt(record, shots),
        "scored": [{"completion": answer, **asdict(score)} for answer, score in scored],
    }


def _print(task: Task, shown: Mapping[str, Any]) -> None:
    from evaluation import jsonl

    reverse = ("\033[7m", "\033[0m") if sys.stdout.isatty() else ("[[", "]]")
    marked = "".join(s["text"].join(reverse) if s["loss"] else s["text"] for s in shown["training_text"])
    _section(f"{task.name}, version {task.version}", task.description)
    _section("record", jsonl.dump(shown["record"], indent=1))
    _section(f"training text (supervised part between {' and '.join(map(repr, reverse))})", marked)
    _section("baseline prompt", shown["prompt"])
    for whose, answer in zip(("the reference", "another record's answer"), shown["scored"], strict=True):
        metrics = "  ".join(f"{name} {value:g}" for name, value in answer["metrics"].items())
        _section(
            f"{whose}, scored",
            f"{answer['completion']}\n-> {answer['error'] or 'right'}: {answer['why']}\n   {metrics}",
        )
    _section("metrics", _columns(shown["metrics"]))
    if shown["assisted_metrics"]:
        _section("metrics that need --extractor or --judge", _columns(shown["assisted_metrics"]))
    _section("error categories", _columns(shown["errors"]))
    for split, facts in shown["splits"].items():
        _section(f"split {split}", "\n".join(_facts(facts)))
    _section("questions that stand elsewhere as well", "\n".join(_leaks(shown["leaks"])))


def _facts(facts: Mapping[str, Any]) -> list[str]:
    rejected = facts["rejected"]
    lines = [
        f"from {facts['origin']}",
        f"{facts['rows']:,} rows; {len(rejected)} not usable" + (f", for instance {rejected[0]}" if rejected else ""),
        f"{facts['duplicates']:,} repeat an earlier question, {facts['contradictions']:,} of them with another answer",
    ]
    if facts["marked"]:
        lines.append(f"{len(facts['marked']):,} hold a special token of the task, for instance {facts['marked'][0]}")
    if facts["lengths"]:
        lines.append("smallest / median / 95 % / 99 % / largest")
    for what, lengths in facts["lengths"].items():
        lines.append(f"  {what:<22} {' / '.join(f'{value:,}' for value in lengths.values())}")
    if facts["labels"]:
        lines.append("labels: " + ", ".join(f"{name} {count:,}" for name, count in facts["labels"].items()))
    return lines


def _leaks(leaks: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{one['split']} in {one['seen_in']}: of {one['rows']:,} rows {one['exact']:,} exact, {one['normalised']:,} "
        f"with the same words, {one['overlap']:,} by 8-gram overlap; {one['answers']:,} answers stand there too"
        for one in leaks["overlaps"]
    ]
    found = list(leaks["records"].items())
    lines += [f"  {identity}: {reason}" for identity, reason in found[:_MOST_LEAKS_SHOWN]]
    if len(found) > _MOST_LEAKS_SHOWN:
        lines.append(f"  ... and {len(found) - _MOST_LEAKS_SHOWN:,} more; --out leaks.json writes them all")
    return lines or ["one split only: nothing to compare"]


def _columns(texts: Mapping[str, str]) -> str:
    return "\n".join(f"{name:<22} {text}" for name, text in texts.items())


def _section(title: str, text: str) -> None:
    print(f"\n== {title}\n{text}")
