"""How `fulltune prepare` copes with a million rows: memory, rows per second, and how soon a second run is done.

    python -m benchmarks.prepare_million [--rows 1000000] [--task gsm8k] [--folder DIR]

The rows come from the task's own generator, numbered so that no two are alike, in one JSONL file. Peak memory is the
proportional set size, summed over the driver and Ray's processes and sampled every two seconds: pages that several
processes share, such as Ray's object store, count once. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

import tasks
from fulltune import config
from fulltune.config import RunConfig
from ray_jobs import cluster, recipes
from ray_jobs.prepare import prepare
from tasks.base import SPLITS

MIB = 2**20


def main() -> None:
    """Writes the rows, prepares twice, prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument("--folder", type=Path, help="keep file and cache here instead of in a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        file = folder / f"{arguments.task}-{arguments.rows}.jsonl"
        if not file.exists():
            write_rows(file, arguments.task, arguments.rows)
        print(json.dumps(measure(file, arguments.task, folder) | {"rows": arguments.rows}, indent=2))


def write_rows(file: Path, name: str, rows: int) -> None:
    """Rows of the task's generator, each with a number of its own in its first column."""
    task = tasks.get(name)
    assert task.generate is not None, "a task that brings its own data"
    source = [dict(row) for split in SPLITS for row in task.generate(split)]
    column = next(key for key, value in source[0].items() if isinstance(value, str) and key != task.columns[-1])
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as handle:
        for number, row in zip(range(rows), itertools.cycle(source), strict=False):
            handle.write(json.dumps(row | {column: f"{row[column]} ({number})"}) + "\n")


def measure(file: Path, name: str, folder: Path) -> dict[str, object]:
    """Prepares from nothing, then from the cache."""
    run = _run(file, name, folder)
    with cluster.connected():
        idle = sum(_family())
        with peak_memory() as peaks:
            seconds, facts = _timed(run)
        cpu_seconds = _cpu_seconds()
    again, same = _timed(run)
    assert same == facts
    return {
        "cpus": os.cpu_count(),
        "file_mib": round(file.stat().st_size / MIB),
        "seconds": round(seconds, 1),
        "cpu_seconds": cpu_seconds,
        "rows_per_s": round(int(str(facts["rows"])) / seconds),
        "tokens": facts["tokens"],
        "memory_before_mib": round(idle / MIB),  # Ray's own processes and this one
        "peak_memory_mib": {key: round(value / MIB) for key, value in sorted(peaks.items())},
        "second_run_seconds": round(again, 1),
    }


def _run(file: Path, name: str, folder: Path) -> RunConfig:
    """The demo's tiny model over this file; what is measured does not depend on the model."""
    overrides = [f"task={name}", f"data.source={file}", "data.max_length=512", "validation.every_steps=null"]
    return config.load(recipes.path("demo"), [*overrides, "report=null", f"ray.storage_path={folder / 'runs'}"])


def _timed(run: RunConfig) -> tuple[float, dict[str, object]]:
    started = time.perf_counter()
    prepared = prepare(run, say=lambda line: print(line, file=sys.stderr))
    return time.perf_counter() - started, prepared.manifests["train"]


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Peaks in bytes of the driver, of the largest worker, and of all processes together, filled in on leaving."""
    peaks = {"driver": 0, "largest_other_process": 0, "all_processes": 0}
    done = threading.Event()

    def sample() -> None:
        while not done.wait(2):
            mine, *others = _family()
            for key, value in zip(peaks, (mine, max(others, default=0), mine + sum(others)), strict=True):
                peaks[key] = max(peaks[key], value)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def _family() -> list[int]:
    """The memory of this process, then of each process that it or Ray started."""
    own = psutil.Process()
    return [_memory(process) for process in (own, *own.children(recursive=True))]


def _cpu_seconds() -> dict[str, int]:
    """What each kind of process has used: the tasks of Ray Data by their names, this process as `driver`."""
    own = psutil.Process()
    spent = {"driver": round(sum(own.cpu_times()[:2]))}
    for process in own.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            name = process.cmdline()[0].split("/")[-1] if process.cmdline() else process.name()
            spent[name] = spent.get(name, 0) + round(sum(process.cpu_times()[:2]))
    return {name: seconds for name, seconds in spent.items() if seconds}


def _memory(process: psutil.Process) -> int:
    """Proportional set size where the system tells it; a process that has just ended takes nothing."""
    try:
        info = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return int(getattr(info, "pss", info.rss))


if __name__ == "__main__":
    main()
