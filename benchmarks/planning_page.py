"""Writes the tables of docs/planning_evidence.md, so that the page and the code cannot drift apart.

    python -m benchmarks.planning_page [--check]

Every table stands between `<!-- NAME -->` and `<!-- end -->`; the words around them are written by hand. `--check` only
compares, and exits with 1 where the page is stale. Nothing here was measured on a GPU.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import deepspeed_configs
from benchmarks import estimators, fit_throughput
from fulltune import architectures
from fulltune.config import TrainConfig
from fulltune.plan import fits, hardware, published, search, shape, sharding, throughput
from fulltune.plan.activations import Batch
from fulltune.plan.hardware import GIB, Gpu
from fulltune.plan.memory import Memory, Setup, memory, usable
from fulltune.plan.search import Choice
from fulltune.plan.sharding import Sharding

PAGE = Path(__file__).resolve().parents[1] / "docs" / "planning_evidence.md"

# GSM8K as the study trains it: 7,473 rows in steps of 256, 190 tokens a row and two thirds supervised (with a tokenizer
# that splits digits; Llama-2's is a little longer), padded to 512 there and packed here
ROWS, GLOBAL_BATCH, MEAN, SUPERVISED, PADDED = 7473, 256, 190, 0.66, 512
STEPS = -(-ROWS // GLOBAL_BATCH)
MODELS = {"7B": "llama2_7b", "13B": "llama2_13b", "70B": "llama2_70b"}
CLUSTERS = {"16x A10G": ("A10G", 16), "8x A100-80": ("A100-80", 8), "8x H100": ("H100", 8), "32x A10G": ("A10G", 32)}
MICRO_BATCHES = (1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class Option:
    """A configuration with what it needs and how long its step takes."""

    choice: Choice
    setup: Setup
    memory: Memory


def options(model: str, gpu: Gpu, workers: int) -> Iterator[Option]:
    """Every shipped sharding that runs there, micro-batch and use of checkpointing, for packed GSM8K."""
    share = GLOBAL_BATCH * MEAN / workers
    hidden = shape.of(architectures.load(MODELS[model])).hidden_size
    for file in (deepspeed_configs.sized(scheme, hidden) for scheme in search.SCHEMES):
        sharded = sharding.read(deepspeed_configs.load(file))
        for checkpointing in (False, True):
            for size in MICRO_BATCHES:
                micro_batches = max(1, -(-round(share) // size))
                tokens = min(size, round(share / micro_batches) + PADDED)
                made = setup(model, sharded, gpu, workers, tokens, checkpointing=checkpointing)
                if search.runs(made):
                    yield Option(_choice(file, made, gpu, micro_batches), made, memory(made))


def _choice(file: str, made: Setup, gpu: Gpu, micro_batches: int) -> Choice:
    step = throughput.planned_step(
        made,
        gpu,
        tokens=GLOBAL_BATCH * MEAN,
        supervised_tokens=GLOBAL_BATCH * MEAN * SUPERVISED,
        squared_lengths=GLOBAL_BATCH * MEAN**2,
        micro_batches=micro_batches,
    )
    needed = memory(made)
    return Choice(
        deepspeed=file,
        workers=made.workers,
        micro_batch_tokens=made.batch.tokens,
        micro_batches=micro_batches,
        gradient_checkpointing=made.checkpointing,
        step_seconds=step.total,
        gpu_bytes=needed.gpu.total,
        host_bytes=needed.host_peak,
    )


def setup(model: str, sharded: Sharding, gpu: Gpu, workers: int, tokens: int, *, checkpointing: bool) -> Setup:
    """A run of this model in bf16 on nodes as the table of GPUs has them."""
    return Setup(
        shape=shape.of(architectures.load(MODELS[model])),
        sharding=sharded,
        batch=Batch(tokens=tokens, supervised=round(tokens * SUPERVISED)),
        workers=workers,
        dtype_bytes=2,
        checkpointing=checkpointing,
        attention="flash",
        loss_chunk=TrainConfig().loss_chunk_tokens,
        workers_per_node=min(workers, gpu.node_size),
    )


def fitting(option: Option, gpu: Gpu) -> bool:
    """Whether GPU and host hold it."""
    return search.fits(option.memory, gpu, gpu.node_memory)


def plans() -> str:
    """What the search chooses, by model and cluster."""
    lines = [
        "| model | cluster | chosen | micro-batches | per GPU | host per node, at most | step | epoch | cost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        for cluster, (name, workers) in CLUSTERS.items():
            lines.append(_plan_row(model, cluster, hardware.gpu(name), workers))
    return "\n".join(lines)


def _plan_row(model: str, cluster: str, gpu: Gpu, workers: int) -> str:
    tried = list(options(model, gpu, workers))
    best = search.preferred((option.choice for option in tried if fitting(option, gpu)), gpu)
    if best is None:
        least = min(tried, key=lambda option: (option.memory.gpu.total > gpu.memory, option.memory.host_peak))
        host = f"{least.memory.host_peak / GIB:,.0f} of {usable(gpu.node_memory) / GIB:,.0f} GiB"
        need = f"{least.memory.gpu.total / GIB:.1f} of {gpu.memory / GIB:.1f} GiB | {host}"
        return f"| {model} | {cluster} | **none**; the nearest is {least.choice.deepspeed} | | {need} | | | |"
    hours = STEPS * best.step_seconds / 3600
    price = hardware.price(gpu.name)
    cost = f"${hours * workers * price.usd_per_hour:,.2f}" if price else "no price listed"
    name = f"{best.deepspeed}{', checkpointing' if best.gradient_checkpointing else ''}"
    per_gpu = f"{best.gpu_bytes / GIB:.1f} of {gpu.memory / GIB:.1f} GiB"
    host = f"{best.host_bytes / GIB:,.0f} of {usable(gpu.node_memory) / GIB:,.0f} GiB"
    size = f"{best.micro_batches} x {best.micro_batch_tokens:,}"
    return (
        f"| {model} | {cluster} | {name} | {size} | {per_gpu} | {host} "
        f"| {best.step_seconds:.1f} s | {hours * 60:.1f} min | {cost} |"
    )


# what the study trained on: single-GPU nodes for 7B and 13B, four g5.48xlarge for 70B
ONE_PER_NODE = replace(hardware.gpu("A10G"), node_size=1, network_bandwidth=10e9 / 8)
STUDY = {
    "7B": (ONE_PER_NODE, 16, 16, "zero3_offload_all", "14"),
    "13B": (ONE_PER_NODE, 16, 16, "zero3_offload_all", "20, elsewhere 26"),
    "70B": (hardware.gpu("A10G"), 32, 8, "zero3_offload", "190"),
}


def study() -> str:
    """The study's own configuration, and what each part of it costs."""
    lines = [
        "| model | GPUs | states per GPU without offload | without offload | epoch: published | planned, as published "
        "| planned, nothing offloaded | planned, packed as well |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, (gpu, workers, rows, file, minutes) in STUDY.items():
        read = sharding.read(deepspeed_configs.load(file))
        tight = sharding.read(deepspeed_configs.load(MODELS[model]))
        stays = replace(tight, offload_optimizer="none", offload_param="none")
        size = PADDED * rows
        bare = memory(setup(model, stays, gpu, workers, size, checkpointing=True)).gpu
        states = (bare.parameters + bare.gradients + bare.optimizer) / 1e9
        fit = bare.total <= gpu.memory
        verdict = f"{'fits' if fit else 'does not fit'}: {bare.total / GIB:.1f} of {gpu.memory / GIB:.1f} GiB"
        epochs = [_epoch(model, sharded, gpu, workers, length) for sharded, length in
                  ((read, PADDED), (stays, PADDED), (stays, MEAN))]  # fmt: skip
        planned = [f"{epochs[0]:.0f} min", *(f"{minutes:.0f} min" if fit else "-" for minutes in epochs[1:])]
        lines.append(
            f"| {model} | {workers}x A10G | {states:.1f} GB | {verdict} | {minutes} min | {' | '.join(planned)} |"
        )
    return "\n".join(lines)


def _epoch(model: str, sharded: Sharding, gpu: Gpu, workers: int, length: int) -> float:
    """Minutes of an epoch in one micro-batch per step, the study's rows of 512 tokens or packed real ones."""
    tokens = GLOBAL_BATCH * length
    step = throughput.planned_step(
        setup(model, sharded, gpu, workers, tokens // workers, checkpointing=True),
        gpu,
        tokens=tokens,
        supervised_tokens=tokens,
        squared_lengths=tokens * length,
        micro_batches=1,
    )
    return STEPS * step.total / 60


PUBLISHED = (
    "foundry-a100-7b-s2048-g8",
    "foundry-a100-13b-s2048-g8",
    "foundry-h100-7b-s2048-g8",
    "foundry-h100-13b-s2048-g8",
    "titan-a100-llama2-13b-none",
    "titan-a100-llama2-70b-full",
    "ibm-a100-llama2-70b",
    "ibm-h100-llama2-70b",
    "kempner-h200-llama3-8b-fsdp-g4",
)


def speeds() -> str:
    """Published tokens/s of full-parameter training beside the plan's."""
    halves = {row.id: "fitted" for row in published.fitting_rows()} | {
        row.id: "tested" for row in published.test_rows()
    }
    lines = ["| row | half | published tokens/s per GPU | planned | difference |", "|---|---|---|---|---|"]
    by_id = {row.id: row for row in published.rows()}
    for name in PUBLISHED:
        row = by_id[name]
        planned = throughput.predicted_tokens_per_s(row, throughput.EFFICIENCY[row.pair])
        lines.append(
            f"| {name} | {halves[name]} | {row.tokens_per_s:,.0f} | {planned:,.0f} | {throughput.error(row):+.0%} |"
        )
    return "\n".join(lines)


def fit_cases() -> str:
    """Published fit and does-not-fit runs with the plan's verdict."""
    lines = ["| run | GPU needed | host needed | planned | happened | source |", "|---|---|---|---|---|---|"]
    for case in fits.cases():
        verdict = fits.judge(case)
        host = f"{verdict.host_share:.0%}" if case.host else ""
        words = ["fits" if answer else "out of memory" for answer in (verdict.fits, case.fits)]
        near = " (near)" if verdict.near else ""
        lines.append(
            f"| {case.id} | {verdict.gpu_share:.0%} | {host} | {words[0]}{near} | {words[1]} | {case.source} |"
        )
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "plans": plans,
    "study": study,
    "speeds": speeds,
    "flops": fit_throughput.accounting,
    "throughput": fit_throughput.errors_by_pair,
    "constants": fit_throughput.estimators,
    "excluded": fit_throughput.exclusions,
    "fits": fit_cases,
    "estimators": estimators.scores,
}


def rendered(text: str) -> str:
    """The page with every table brought up to date."""
    for name, table in TABLES.items():
        text, found = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{table()}\n\g<2>", text, flags=re.DOTALL
        )
        if found != 1:
            raise ValueError(f"{PAGE.name} has {found} places for the table {name!r}, wanted 1")
    return text


def main() -> int:
    """Update the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where the page is stale")
    check = parser.parse_args().check
    before = PAGE.read_text(encoding="utf-8")
    after = rendered(before)
    if not check:
        PAGE.write_text(after, encoding="utf-8")
    return int(check and before != after)


if __name__ == "__main__":
    sys.exit(main())
