"""Kills training processes at random moments and compares what comes out with a run that was left alone.

    python -m benchmarks.kill_campaign [--draws 20] [--how fulltune|deepspeed] [--configs zero0,zero2-offload-ga4 ...]

Two worker processes over gloo, without Ray. A draw starts a tiny run, sends SIGKILL to one worker (every third time
while a save is under way, else at any moment of the training), to the other a moment later, starts the run again, and
then compares: every loss and gradient norm in hexadecimal, a SHA-256 over all numbers of the last checkpoint (weights,
optimizer, random states), the examples of every step, and their multiset per epoch. `--how deepspeed` puts the same
draws to DeepSpeed's own `save_checkpoint` and `load_checkpoint`. Prints a line per draw and one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from benchmarks.tiny import MODEL

WORKERS = 2
BATCH = 16  # 64 examples: 4 steps an epoch
STEPS, EVERY = 12, 2
BOUND_S = 240.0
RUN: dict[str, Any] = {
    "task": "viggo",
    "model": MODEL,
    "data": {"limit": 64, "packing": True},
    "train": {"learning_rate": 1e-3, "max_steps": STEPS, "num_epochs": 10, "global_batch_size": BATCH},
    "checkpoint": {"every_steps": EVERY, "keep_last": 2},
    "ray": {"name": "campaign", "num_workers": WORKERS},
}


Arm = Literal["", "offload", "bf16", "offload-bf16"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One cell of the matrix."""

    stage: int
    arm: Arm
    accumulation: int

    @property
    def name(self) -> str:
        """For example zero2-offload-ga4."""
        return f"zero{self.stage}{self.arm and '-' + self.arm}-ga{self.accumulation}"


# ZeRO-0 shards no optimizer, so it has none to offload
ARMS: tuple[Arm, ...] = ("", "offload", "bf16", "offload-bf16")
MATRIX = [Setting(stage, arm, a) for stage in range(4) for arm in ARMS for a in (1, 4) if stage or not arm]


@dataclass(frozen=True, slots=True)
class Bench:
    """What all draws share."""

    folder: Path
    model: Path
    tokens: Path
    how: str
    context: Any

    def run(self, setting: Setting) -> dict[str, Any]:
        """The resolved tree of a run."""
        zero: dict[str, Any] = {"stage": setting.stage}
        if "offload" in setting.arm:
            zero["offload_optimizer"] = {"device": "cpu"}
        train = RUN["train"] | {"micro_batch_tokens": self.micro_batch_tokens(setting.accumulation)}
        model = MODEL | {"dtype": "bfloat16" if "bf16" in setting.arm else "float32"}
        return RUN | {"model": model, "train": train, "deepspeed": {"zero_optimization": zero}}

    def micro_batch_tokens(self, accumulation: int) -> int:
        """The capacity that cuts a worker's share of a step into so many micro-batches."""
        from fulltune import batches, config, data

        table = data.TokenTable(self.tokens)
        for tokens in range(4096, 8, -8):
            train = config.TrainConfig(global_batch_size=BATCH, micro_batch_tokens=tokens)
            planned = batches.StepPlanner(table, train, True, 0, WORKERS).step(1)
            if len(planned.micro_batches) >= accumulation:
                return tokens
        raise AssertionError(f"no capacity gives {accumulation} micro-batches")

    def start(self, setting: Setting, folder: Path) -> list[BaseProcess]:
        """Starts, or starts again, the workers of a run."""
        from benchmarks import kill_ranks

        folder.mkdir(parents=True, exist_ok=True)
        for error in folder.glob("error-*"):
            error.unlink()
        inputs = {"model": str(self.model), "tokens": str(self.tokens), "how": self.how}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        run = self.run(setting)
        workers = [
            self.context.Process(target=kill_ranks.main, args=(rank, WORKERS, port, run, str(folder), inputs))
            for rank in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        return workers


def main() -> None:
    """Draws, compares, prints; exit code 1 where fulltune's runs differ anywhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--how", choices=("fulltune", "deepspeed"), default="fulltune")
    parser.add_argument("--configs", help="comma-separated cells such as zero2-ga1 (default: all)")
    options = parser.parse_args()
    chosen = [s for s in MATRIX if options.configs is None or s.name in options.configs.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(Path(folder), options.how)
        results = campaign(bench, chosen, options.draws, random.Random(options.seed))
    counts = Counter(result["outcome"] for result in results)
    inside = sum(result["inside"] for result in results)
    print(json.dumps({"how": options.how, "draws": len(results), "inside_save": inside, "outcomes": dict(counts)}))
    sys.exit(int(options.how == "fulltune" and set(counts) != {"same"}))


def prepare(folder: Path, how: str) -> Bench:
    """Tokenizer, model, tokens, and the server that workers are forked from."""
    import tasks
    from fulltune import config, data, device, model
    from fulltune import tokenizer as tok
    from tasks.sources import load

    resolved = config.resolve(RUN, origin="campaign")
    task = tasks.get("viggo")
    records = load(task, "train", "bundled", limit=64)
    texts = ["".join(segment.text for segment in task.render(record)) for record in records]
    start = model.prepare(resolved.model, task, texts, seed=1, cache=folder)
    table = data.prepare(task, records, tok.load(str(start)), resolved.data, split="train", cache=folder)
    os.environ |= device.worker_environment(use_gpu=False) | {"OMP_NUM_THREADS": "1"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.kill_ranks"])
    return Bench(folder, start, table.folder, how, context)


def campaign(bench: Bench, settings: list[Setting], draws: int, draw: random.Random) -> list[dict[str, Any]]:
    """One undisturbed run per cell, then the draws, spread evenly over the cells."""
    expected: dict[str, dict[str, Any]] = {}
    results = []
    for number in range(draws):
        setting = settings[number % len(settings)]
        if setting.name not in expected:
            expected[setting.name] = undisturbed(bench, setting)
        result = {"draw": number, "setting": setting.name} | one_draw(
            bench, setting, number, expected[setting.name], draw
        )
        print(json.dumps(result), flush=True)
        results.append(result)
    return results


def undisturbed(bench: Bench, setting: Setting) -> dict[str, Any]:
    """The outcome of a run that nobody kills; its examples are the data set, once an epoch."""
    from benchmarks import kill_ranks

    folder = bench.folder / f"whole-{setting.name}"
    error = finish(bench.start(setting, folder), folder)
    if error is not None:
        raise RuntimeError(f"{setting.name} fails undisturbed:\n{error}")
    whole = kill_ranks.outcome(folder, WORKERS, ours=bench.how == "fulltune")
    epochs = Counter(index for step in whole["examples"].values() for index in step)
    assert set(epochs.values()) == {STEPS * BATCH // len(epochs)}, "an example is missing or taken twice"
    return whole


def one_draw(
    bench: Bench, setting: Setting, number: int, expected: dict[str, Any], draw: random.Random
) -> dict[str, Any]:
    """Kill, start again, compare."""
    folder = bench.folder / f"draw-{number}"
    inside_wanted = number % 3 == 0
    try:
        killed_at, inside = kill(bench.start(setting, folder), folder, draw.randrange(1, STEPS), inside_wanted, draw)
    except TooLate:  # it proves nothing; another moment is drawn
        shutil.rmtree(folder)
        return one_draw(bench, setting, number, expected, draw)
    error = finish(bench.start(setting, folder), folder)
    outcome = judge(bench, folder, expected, error)
    shutil.rmtree(folder)
    return {"outcome": outcome, "killed_after_step": killed_at, "inside": inside}


class TooLate(RuntimeError):
    """The run had come to its end by itself."""


def kill(
    workers: list[BaseProcess], folder: Path, step: int, inside_wanted: bool, draw: random.Random
) -> tuple[int, bool]:
    """SIGKILL to a random worker, and to the other a moment later. Returns the step, and whether a save was cut off."""
    deadline = time.monotonic() + BOUND_S
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        if reached(folder) >= step and (not inside_wanted or saving(folder)):
            break
        time.sleep(0.0005)
    time.sleep(draw.uniform(0, 0.01) if inside_wanted else draw.uniform(0, 0.1))
    order = draw.sample(workers, len(workers))
    ended = order[0].exitcode
    order[0].kill()
    inside = saving(folder)
    time.sleep(draw.uniform(0, 0.05))
    for worker in order:
        worker.kill()
        worker.join()
    if ended is not None:
        raise (RuntimeError if ended else TooLate)(f"the run had ended with {ended} before it was to be killed")
    return reached(folder), inside


def reached(folder: Path) -> int:
    """The last step in the log; 0 before there is one."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, IndexError, ValueError):
        return 0


def saving(folder: Path) -> bool:
    """Whether a checkpoint is there in part: a stage of ours, or DeepSpeed's folder before `latest` names it."""
    root = folder / "checkpoints"
    if any(root.glob(".stage-step-*")):
        return True
    tags = sorted((int(path.name[1:]) for path in root.glob("s*") if path.name[1:].isdigit()), reverse=True)
    try:
        return bool(tags) and (root / "latest").read_text() != f"s{tags[0]}"
    except OSError:
        return bool(tags)


def finish(workers: list[BaseProcess], folder: Path) -> str | None:
    """Waits for a run's end; the first error, if there was one."""
    deadline = time.monotonic() + BOUND_S
    while any(worker.is_alive() for worker in workers) and not list(folder.glob("error-*")):
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    for worker in workers:
        worker.join(timeout=5)
        worker.kill()
        worker.join()
    first = sorted(folder.glob("error-*"), key=lambda file: file.stat().st_mtime_ns)  # the others only lost a peer
    errors = [file.read_text() for file in first]
    if errors:
        return errors[0]
    codes = [worker.exitcode for worker in workers]
    return None if codes == [0] * len(codes) else f"exit codes {codes}"


def judge(bench: Bench, folder: Path, expected: dict[str, Any], error: str | None) -> str:
    """`same`, or in what the restarted run is another one."""
    from benchmarks import kill_ranks

    if error is not None:
        return f"cannot resume: {error.strip().splitlines()[-1][:160]}"
    got = kill_ranks.outcome(folder, WORKERS, ours=bench.how == "fulltune")
    different = [key for key in expected if got[key] != expected[key]]
    return f"differs in {', '.join(different)}{first_difference(expected, got)}" if different else "same"


def first_difference(expected: dict[str, Any], got: dict[str, Any]) -> str:
    """The first step whose loss or gradient norm is another one, and by how much."""
    for one, other in zip(expected["losses"], got["losses"], strict=False):
        if one != other:
            wanted, found = ([float.fromhex(value) for value in line[1:]] for line in (one, other))
            return f"; from step {one[0]}: loss {wanted[0]} {found[0]}, gradient norm {wanted[1]} {found[1]}"
    return ""


if __name__ == "__main__":
    main()
