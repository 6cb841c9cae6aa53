"""How long the training stands still for a checkpoint: DeepSpeed in place, ours waited for, ours beside the training.

    python -m benchmarks.save_pause [--saves 5] [--hidden 512] [--layers 8] [--stage 2]

One worker trains a random Llama; after every third step it saves, the three ways in turn, so that all of them meet the
same machine. Reported are medians: seconds of standing still, and of the step that is taken while a save is under way.
Prints one JSON object; on a shared machine only the ratios mean something.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

CHILD = "FULLTUNE_SAVE_PAUSE_CHILD"
WAYS = ("deepspeed", "waited_for", "beside")


def main() -> None:
    """Measures in a child process that has the environment of a CPU worker from its start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=5, help="of each kind")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--stage", type=int, default=2)
    options = parser.parse_args()
    if CHILD not in os.environ:
        from fulltune import device

        environment = os.environ | device.worker_environment(use_gpu=False) | {CHILD: "1"}
        environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": "29571"}
        sys.exit(
            subprocess.run([sys.executable, "-m", "benchmarks.save_pause", *sys.argv[1:]], env=environment).returncode
        )
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options)
    print(json.dumps(figures, indent=1))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Trains, saves, and takes the times."""
    import torch.distributed as dist

    from fulltune import batches, comm, state
    from fulltune.engine import prebuild
    from fulltune.saver import Saver

    dist.init_process_group("gloo")
    prebuild.attach()
    engine, model, table, resolved = build(folder, options)
    batch = batches.collate(table, range(4))
    workers = comm.Workers()
    loader = batches.StepPlanner(table, resolved.train, resolved.data.packing)
    take = partial(state.take, engine, loader, model, workers)
    savers = {way: Saver(folder / way, workers, 1, way == "beside", print) for way in WAYS[1:]}
    paused: dict[str, list[float]] = {way: [] for way in WAYS}
    after: dict[str, list[float]] = {way: [] for way in WAYS}
    size = 0
    for number, way in enumerate(itertools.chain.from_iterable([WAYS] * (options.saves + 1)), start=1):
        steps = [timed(lambda: step(engine, batch)) for _ in range(2)]
        if way == "deepspeed":
            shutil.rmtree(folder / way, ignore_errors=True)
            pause = timed(lambda: engine._wrapped.save_checkpoint(str(folder / "deepspeed"), tag="t"))
            size = sum(file.stat().st_size for file in (folder / way).rglob("*.pt"))
        else:
            pause = timed(partial(savers[way].save, number, take, meta={}, last=True))
        slowed = timed(lambda: step(engine, batch))
        if way != "deepspeed":
            savers[way].wait()
        if number > len(WAYS):  # the first round meets cold memory
            paused[way].append(pause)
            after[way].append(slowed / min(steps))
    middle = {way: statistics.median(times) for way, times in paused.items()}
    return {
        "checkpoint_mb": round(size / 1e6, 1),
        "pause_s": {way: round(value, 3) for way, value in middle.items()},
        "pause_beside_over_waited_for": round(middle["beside"] / middle["waited_for"], 3),
        "pause_beside_over_deepspeed": round(middle["beside"] / middle["deepspeed"], 3),
        "next_step_over_quiet_step": {way: round(statistics.median(values), 2) for way, values in after.items()},
        "saves_each": options.saves,
        "load_average": os.getloadavg()[0],
    }


def build(folder: Path, options: argparse.Namespace) -> tuple[Any, Path, Any, Any]:
    """A random Llama in DeepSpeed, its folder, a few tokenised rows, and the configuration."""
    import tasks
    from benchmarks.kill_campaign import RUN
    from fulltune import config, data
    from fulltune import engine as engines
    from fulltune import model as models
    from fulltune import tokenizer as tok
    from tasks.sources import load

    size = {"hidden_size": options.hidden, "intermediate_size": 4 * options.hidden, "num_hidden_layers": options.layers}
    architecture = RUN["model"] | {"config": RUN["model"]["config"] | size}
    resolved = config.resolve(
        RUN | {"model": architecture, "deepspeed": {"zero_optimization": {"stage": options.stage}}}, origin="benchmark"
    )
    task = tasks.get("viggo")
    records = load(task, "train", "bundled", limit=64)
    texts = ["".join(segment.text for segment in task.render(record)) for record in records]
    start = models.prepare(resolved.model, task, texts, seed=1, cache=folder)
    table = data.prepare(task, records, tok.load(str(start)), resolved.data, split="train", cache=folder)
    return engines.build(resolved, start, num_workers=1), start, data.TokenTable(table.folder), resolved


def step(engine: Any, batch: Any) -> None:
    """One optimizer step."""
    engine.accumulate(batch, step_tokens=len(batch.targets), last=True)
    engine.update(1e-4)


def timed(work: Any) -> float:
    """Seconds of wall clock."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
