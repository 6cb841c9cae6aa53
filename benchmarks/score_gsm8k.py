"""How long `fulltune score` takes for GSM8K: predictions in many styles through evaluation.score.

    python -m benchmarks.score_gsm8k [--rows 100000] [--processes 2]

Outputs are made from the bundled solutions in the styles that models write. The target is 100,000 predictions in 30 s
on two cores, reading of files not included. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time

import tasks
from evaluation.predictions import Prediction, Predictions
from evaluation.score import score
from tasks.base import SPLITS, Record
from tasks.sources import load

TARGET_PER_S = 100_000 / 30

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
    records, predictions = _examples(arguments.rows)
    started, cpu_before = time.perf_counter(), _cpu_seconds()
    scores = score(tasks.get("gsm8k"), records, predictions, processes=arguments.processes)
    seconds = time.perf_counter() - started
    figures = {
        "rows": scores.n,
        "processes": arguments.processes,
        "cpus": os.cpu_count(),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(_cpu_seconds() - cpu_before, 2),  # of all processes: what it takes on an idle machine
        "rows_per_s": round(scores.n / seconds),
        "target_rows_per_s": round(TARGET_PER_S),
        "flexible": scores.metrics["flexible"].mean,
    }
    print(json.dumps(figures, indent=2))


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _examples(rows: int) -> tuple[list[Record], Predictions]:
    task = tasks.get("gsm8k")
    source = [record for split in SPLITS for record in load(task, split, "bundled")]
    records, by_id = [], {}
    for number, record, style in zip(range(rows), itertools.cycle(source), itertools.cycle(STYLES), strict=False):
        solution, _, result = str(record["answer"]).partition("\n#### ")
        identity = f"gsm8k-bench-{number}"
        records.append(Record(identity, record.fields))
        by_id[identity] = Prediction(identity, style.format(solution=solution, number=result))
    return records, Predictions("benchmark", by_id)


if __name__ == "__main__":
    main()
