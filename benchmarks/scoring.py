"""Runs `fulltune score` on files and measures it: wall time, CPU time and memory of all its processes.

Shared by benchmarks.score_gsm8k and benchmarks.score_sql. Everything that a user waits for is in the figures: start of
Python, reading both files, scoring, intervals, and writing scores.jsonl.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def measured(task: str, folder: Path, processes: int, target_s_per_row: float) -> dict[str, Any]:
    """Score `folder`/predictions.jsonl against `folder`/test.jsonl and return the figures."""
    command = [sys.executable, "-m", "ray_jobs.cli", "score", "--task", task, "--json", "--processes", str(processes)]
    command += ["--references", str(folder / "test.jsonl"), "--predictions", str(folder / "predictions.jsonl")]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([*command, "--out", str(folder / "out")], check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads(done.stdout)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "rows": result["n"],
        "processes": processes,
        "cpus": os.cpu_count(),
        "seconds": round(seconds, 2),
        "target_seconds": round(result["n"] * target_s_per_row, 2),
        "cpu_seconds": round(cpu, 2),  # of all processes: what it takes on an idle machine, less the idling
        "rows_per_s": round(result["n"] / seconds),
        "peak_mib": round(after.ru_maxrss / 1024),  # of the largest process; Linux counts in KiB
        "metrics": {name: round(entry["mean"], 4) for name, entry in result["metrics"].items()},
        "errors": result["errors"],
    }


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
