"""How long `fulltune score` takes for GSM8K: predictions in many styles, from files, through the command itself.

    python -m benchmarks.score_gsm8k [--rows 100000] [--processes 2]

Outputs are made from the bundled solutions in the styles that models write. The target is 100,000 predictions in 30 s
on two cores. Prints one JSON object; `peak_mib` is the memory of the largest process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tasks
from benchmarks.scoring import measured, write_lines
from tasks.base import SPLITS
from tasks.sources import load

TARGET_S_PER_ROW = 30 / 100_000

STYLES = (
    "{solution}\n#### {number}",
    "{solution}\n\n**Final Answer:** ${number}",
    "Let's think step by step.\n\n1. {solution}\n\nThe answer is {number}. I hope this helps!",
    "{solution}\n\\[\\boxed{{{number}\\text{{ in all}}}}\\]",
    "{solution}\nTherefore, in total \u2248 {number} \u2014 that is all \u2705",
    "{solution}\nAnswer: {number}\n#### {number}\n",
    "{solution}",
)


def main() -> None:
    """Score `--rows` predictions and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_lines(folder / "test.jsonl", (record for record, _ in _examples(arguments.rows)))
        write_lines(folder / "predictions.jsonl", (prediction for _, prediction in _examples(arguments.rows)))
        print(json.dumps(measured("gsm8k", folder, arguments.processes, TARGET_S_PER_ROW), indent=2))


def _examples(rows: int) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """(reference, prediction) rows."""
    task = tasks.get("gsm8k")
    source = [record for split in SPLITS for record in load(task, split, "bundled")]
    for number, record, style in zip(range(rows), itertools.cycle(source), itertools.cycle(STYLES), strict=False):
        solution, _, result = str(record["answer"]).partition("\n#### ")
        completion = style.format(solution=solution, number=result)
        reference = {"question": str(record["question"]), "answer": str(record["answer"])}
        yield reference, {"id": f"gsm8k-test-{number}", "completion": completion}


if __name__ == "__main__":
    main()
