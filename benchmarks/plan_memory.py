"""The plan's bytes beside what live engines hold, on CPU: model states, peak process memory, saved activations.

    python -m benchmarks.plan_memory [--part states|copies|peak|activations ...] [--workers 1 2 4] [--json OUT]

states: every worker's weights, gradients, master weights and moments, counted as storages of a real DeepSpeed engine in
the middle of a step, for ZeRO 0-3. copies: what a save copies into host memory, of all workers. peak: the high-water
mark of a process's memory over two steps, less the baseline after a smaller engine has come and gone, median of three.
activations: storages that autograd saved. Float32, gloo, random weights of tiny Llamas. Exit code 1 where a prediction
misses its bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import ranks
from fulltune.config import TrainConfig

if TYPE_CHECKING:
    from fulltune.plan.memory import Setup

BOUNDS = {"states": 0.01, "copies": 0.01, "peak": 0.10, "activations": 0.05}
REPEATS = 3
BOUND_S = 1500  # for all that one launch measures
# every allocation of 64 KiB and more is mapped and unmapped by itself, so that resident memory is what is in use
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
BUCKET = 1_000_000  # elements, so that buckets do not drown the models
ZERO = {"reduce_bucket_size": BUCKET, "stage3_prefetch_bucket_size": 100_000, "stage3_max_live_parameters": 2_000_000,
        "stage3_max_reuse_distance": 2_000_000, "stage3_param_persistence_threshold": 2_000,
        "contiguous_gradients": True, "overlap_comm": False}  # fmt: skip


def architecture(hidden: int, inner: int, layers: int, heads: int, keys: int, vocab: int, tied: bool) -> dict[str, Any]:
    """A Llama's config.json."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 2048,
    }


# deep and narrow, mostly embedding, and tied with few key heads
TINY = {
    "deep": architecture(64, 172, 6, 4, 4, 512, tied=False),
    "wordy": architecture(48, 128, 2, 4, 2, 4096, tied=False),
    "tied": architecture(96, 256, 3, 6, 2, 1000, tied=True),
}
SMALL = {  # the same kinds with 8 to 10 million parameters: enough to stand out of a process
    "deep": architecture(256, 688, 10, 8, 8, 2048, tied=False),
    "wordy": architecture(192, 512, 3, 6, 3, 20000, tied=False),
    "tied": architecture(512, 1376, 3, 8, 2, 2000, tied=True),
}
LENGTHS = (150, 90, 144)  # segments of one micro-batch


def main(argv: list[str] | None = None) -> int:
    """Runs the parts that were asked for and prints a table; exit code 1 where a bound is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan_memory", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--part", nargs="*", choices=[*BOUNDS], default=[*BOUNDS])
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--shapes", nargs="*", choices=[*TINY], default=[*TINY])
    parser.add_argument("--stages", nargs="*", type=int, choices=range(4), default=[0, 1, 2, 3])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args(argv)
    rows = [row for part in options.part for row in PARTS[part](options)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 1 if any(abs(row["error"]) > BOUNDS[row["part"]] for row in rows) else 0


def states(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of the states table: the fullest worker against the plan, per kind of state."""
    with tempfile.TemporaryDirectory() as folder:
        models = {name: write_model(Path(folder) / name, TINY[name]) for name in options.shapes}
        for workers in options.workers:
            jobs = [[name, str(models[name]), stage] for name in models for stage in options.stages]
            counted = launch("count_states", workers, {"jobs": jobs}, folder)
            for index, (name, _, stage) in enumerate(jobs):
                fullest = max((rank[index] for rank in counted), key=lambda kinds: sum(kinds.values()))
                planned = plan_states(TINY[name], stage, workers)
                for kind in (*fullest, "total"):
                    was = fullest[kind] if kind in fullest else sum(fullest.values())
                    will = planned[kind] if kind in planned else sum(planned.values())
                    yield say(row("states", f"{name} ZeRO-{stage} x {workers} {kind}", will, was))


def plan_states(config: dict[str, Any], stage: int, workers: int) -> dict[str, int]:
    """The plan's bytes per kind of state."""
    from fulltune.plan import shape, sharding
    from fulltune.plan import states as planned

    found = planned.states(
        shape.of(config), sharding.read(deepspeed(stage)), workers=workers, dtype_bytes=4, decay_groups=True
    )
    return {kind: getattr(found, kind) for kind in ("parameters", "gradients", "master", "moments")}


def copies(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of the copies that a save makes on a node that holds all workers."""
    with tempfile.TemporaryDirectory() as folder:
        models = {name: write_model(Path(folder) / name, TINY[name]) for name in options.shapes}
        for workers in options.workers:
            jobs = [[name, str(models[name]), stage] for name in models for stage in options.stages]
            saves = f"{folder}/saves-{workers}"
            counted = launch("count_copies", workers, {"jobs": jobs, "folder": saves}, folder)
            for index, (name, _, stage) in enumerate(jobs):
                will = plan_copies(TINY[name], stage, workers)
                yield say(row("copies", f"{name} ZeRO-{stage} x {workers}", will, sum(rank[index] for rank in counted)))


def plan_copies(config: dict[str, Any], stage: int, workers: int) -> int:
    """The plan's bytes of those."""
    from fulltune.plan import memory

    return memory.snapshot_bytes(plan_setup(config, stage, workers))


def peak(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of the peak table: the fullest worker's median; one process per worker measures everything."""
    with tempfile.TemporaryDirectory() as folder:
        models = {name: write_model(Path(folder) / name, SMALL[name]) for name in options.shapes}
        warm = write_model(Path(folder) / "warm", TINY["deep"])
        jobs = [[name, str(models[name]), stage] for name in models for stage in options.stages]
        for workers in options.workers:
            arguments = {"warm": str(warm), "jobs": jobs, "repeats": REPEATS}
            found = launch("measure_peak", workers, arguments, folder)
            for index, (name, _, stage) in enumerate(jobs):
                marks = max((rank[index] for rank in found), key=statistics.median)
                was = int(statistics.median(marks))
                will = plan_peak(SMALL[name], stage, workers)
                apart = (max(marks) - min(marks)) / was
                yield say(row("peak", f"{name} ZeRO-{stage} x {workers}", will, was) | {"repeats_apart": apart})


def plan_peak(config: dict[str, Any], stage: int, workers: int) -> int:
    """The plan's peak of one worker's tensors."""
    from fulltune.plan import memory

    return memory.memory(plan_setup(config, stage, workers)).tensors


def plan_setup(config: dict[str, Any], stage: int, workers: int) -> Setup:
    """These runs, as a plan sees them; all workers on one node."""
    from fulltune.plan import activations, shape, sharding
    from fulltune.plan.memory import Setup

    return Setup(
        shape=shape.of(config),
        sharding=sharding.read(deepspeed(stage)),
        batch=activations.Batch(sum(LENGTHS), sum(LENGTHS) // 2),
        workers=workers,
        dtype_bytes=4,
        checkpointing=False,
        attention="segments",
        decay_groups=True,
        loss_chunk=TrainConfig().loss_chunk_tokens,
        workers_per_node=workers,
        on_gpu=False,
    )


def activations(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of the activation table: with and without checkpointing, float32 and bfloat16."""
    cases = [(name, dtype, on) for name in options.shapes for dtype in ("float32", "bfloat16") for on in (False, True)]
    with tempfile.TemporaryDirectory() as folder:
        jobs = [[SMALL[name], dtype, on] for name, dtype, on in cases]
        counted = launch("measure_saved", 1, {"jobs": jobs}, folder)[0]
    for (name, dtype, on), was in zip(cases, counted, strict=True):
        what = f"{name} {dtype}{' checkpointed' if on else ''}"
        yield say(row("activations", what, plan_saved(SMALL[name], dtype, checkpointing=on), was))


def plan_saved(config: dict[str, Any], dtype: str, *, checkpointing: bool) -> int:
    """The plan's bytes between forward and backward pass, the log-probabilities included."""
    from fulltune.plan import activations, shape

    model, supervised = shape.of(config), sum(LENGTHS) // 2
    found = activations.activations(
        model,
        activations.Batch(sum(LENGTHS), supervised),
        dtype_bytes=4 if dtype == "float32" else 2,
        checkpointing=checkpointing,
        attention="segments",
    )
    return found.saved + 4 * supervised * model.vocab_size


PARTS: dict[str, Callable[[argparse.Namespace], Iterable[dict[str, Any]]]] = {
    "states": states,
    "copies": copies,
    "peak": peak,
    "activations": activations,
}


def row(part: str, what: str, planned: int, measured: int) -> dict[str, Any]:
    """One comparison; the error is relative to what was measured."""
    error = (planned - measured) / measured if measured else float(planned != measured)
    return {"part": part, "what": what, "planned": planned, "measured": measured, "error": error}


def say(found: dict[str, Any]) -> dict[str, Any]:
    """Prints a row and hands it on."""
    sizes = f"planned {found['planned'] / 1e6:10.3f} MB   measured {found['measured'] / 1e6:10.3f} MB"
    apart = f"   repeats {found['repeats_apart']:.2%} apart" if "repeats_apart" in found else ""
    print(f"{found['part']:<12}{found['what']:<36}{sizes}   {found['error']:+7.2%}{apart}", flush=True)
    return found


def deepspeed(stage: int) -> dict[str, Any]:
    """The DeepSpeed configuration of these runs."""
    return {"zero_optimization": {"stage": stage} | (ZERO if stage else {})}


def write_model(folder: Path, config: dict[str, Any]) -> Path:
    """A folder with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder)
    return folder


def launch(task: str, workers: int, arguments: dict[str, Any], folder: str) -> list[Any]:
    """Runs `task` of `plan_memory_worker` on so many gloo workers and returns what each found."""
    command = [sys.executable, "-m", "benchmarks.plan_memory_worker", task, json.dumps(arguments), folder]
    environment = ALLOCATOR | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return ranks.run(command, workers, environment, Path(folder), timeout_s=BOUND_S)


if __name__ == "__main__":
    sys.exit(main())
