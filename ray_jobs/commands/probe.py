"""Is fine-tuning promising? A base model's few-shot curve, and plain answers to two questions."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fulltune import engines

if TYPE_CHECKING:
    from evaluation.intervals import Estimate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Task, model and how many records."""
    parser.add_argument("--task", required=True, help="a task's name, or path/to/file.py:TASK")
    parser.add_argument("--model", required=True, help="a folder or hub id")
    parser.add_argument("--split", default="valid", choices=("train", "valid", "test"))
    parser.add_argument("--source", default="bundled", help="bundled, hub, or a path")
    parser.add_argument("--limit", type=int, default=50, help="the first N rows by index (default 50)")
    parser.add_argument("--shots", default="0,1,2,4,8", help="worked examples, comma-separated (default 0,1,2,4,8)")
    parser.add_argument("--out", type=Path, help="folder of the predictions and probe.json; default: probe/<task>")
    parser.add_argument(
        "--engine", choices=engines.NAMES, default="hf", help="what generates, as in `fulltune predict` (default hf)"
    )
    parser.add_argument("--batch-tokens", type=int, default=16384, help="tokens of one batch, answers included")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Runs the curve, and prints it with the two answers."""

    import tasks
    from fulltune import device, quiet

    quiet.libraries()
    quiet.transformers()
    from ray_jobs.commands import recipe
    from ray_jobs.predict import Request
    from ray_jobs.probe import probe

    gpus = device.gpu_count()
    out = arguments.out or Path("probe") / tasks.get(arguments.task).name
    base = Request(
        task=arguments.task,
        split=arguments.split,
        source=arguments.source,
        model=arguments.model,
        out=out.absolute() / "0-shot.jsonl",
        label="0-shot",
        prompt="natural",
        limit=arguments.limit,
        engine=arguments.engine,
        batch_tokens=arguments.batch_tokens,
        workers=gpus or max(1, (os.cpu_count() or 1) // 2),
        use_gpu=gpus > 0,
        role="base",
    )
    found = probe(base, out.absolute(), shots=_shots(arguments.shots), say=recipe.say)
    print(json.dumps(found.verdict.as_json()) if arguments.json else _table(found.verdict))
    return 0


def _shots(text: str) -> list[int]:
    from tasks.base import UserError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts) or "0" not in parts:
        raise UserError(
            got=f"--shots {text}",
            wanted="whole numbers with commas between them, 0 among them",
            fix="for example --shots 0,2,8",
        )
    return sorted({int(part) for part in parts})


def _table(verdict: object) -> str:
    from evaluation.probe import Verdict

    assert isinstance(verdict, Verdict), verdict
    lines = [f"{'shots':>5}  {verdict.metric:<28}format violations"]
    for point in verdict.curve:
        violations = point.format_violation.mean
        lines.append(
            f"{point.shots:>5}  {_cell(point.score):<28}" + ("-" if violations is None else f"{violations:.3f}")
        )
    yes = {True: "yes", False: "not shown"}
    lines += ["", f"Has the base met the concept?  {yes[verdict.met_concept]}", *(f"  {e}" for e in verdict.evidence)]
    lines += [f"Do worked examples help?       {yes[verdict.shots_help]}", "", *verdict.advice]
    return "\n".join(lines)


def _cell(found: Estimate) -> str:
    if found.mean is None:  # no answer has the metric
        return "-"
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
