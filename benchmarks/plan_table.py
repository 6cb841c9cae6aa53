"""The memory table of docs/planning.md: Llama-2 on four clusters, as Markdown.

    python -m benchmarks.plan_table

ViGGO, bf16, 256 examples per step, micro-batches of at most 4,096 tokens, activations recomputed.
"""

from __future__ import annotations

from fulltune import architectures, config
from fulltune.plan import planner, workload
from fulltune.plan.planner import Options, Plan
from ray_jobs.lengths import COUNTED

CLUSTERS = ((16, "A10G"), (8, "A100-80"), (8, "H100"), (32, "A10G"))
SIZES = ("7b", "13b", "70b")
SHARDINGS = ("zero2", "zero3", "zero3_offload")


def plan(size: str, workers: int, gpu: str, deepspeed: str) -> Plan:
    """One plan."""
    tree = {
        "task": "viggo",
        "model": {"name_or_path": f"llama2_{size}", "dtype": "bfloat16"},
        "train": {"global_batch_size": 256, "micro_batch_tokens": 4096, "gradient_checkpointing": True},
        "deepspeed": deepspeed,
        "ray": {"num_workers": workers, "use_gpu": True, "accelerator_type": gpu, "name": size},
    }
    lengths = workload.assumed(*COUNTED["viggo"], source="published ViGGO")
    return planner.plan(
        config.resolve(tree, origin="benchmark"), architectures.load(f"llama2_{size}"), lengths, Options()
    )


def cell(found: Plan) -> str:
    """Memory per GPU, and whether it fits."""
    return f"{found.memory.gpu.total / 1e9:.1f}" if found.fits else f"~~{found.memory.gpu.total / 1e9:.1f}~~"


def main() -> None:
    """Prints the table."""
    print(
        "| model | cluster | GB per GPU | "
        + " | ".join(SHARDINGS)
        + " | host per node, offloaded: training, saving | chosen |"
    )
    print("|---|---|---|" + "---|" * (len(SHARDINGS) + 2))
    for size in SIZES:
        for workers, gpu in CLUSTERS:
            plans = [plan(size, workers, gpu, name) for name in SHARDINGS]
            best = plans[0].best
            choice = f"{best.deepspeed}, {best.micro_batch_tokens:,} tokens" if best else "none"
            capacity = plans[0].gpu.memory / 1e9 if plans[0].gpu else 0
            host = f"{plans[-1].memory.host / 1e9:.0f}, {plans[-1].memory.host_saving / 1e9:.0f} GB"
            cells = " | ".join(cell(found) for found in plans)
            print(f"| {size.upper()} | {workers} x {gpu} | {capacity:.1f} | {cells} | {host} | {choice} |")


if __name__ == "__main__":
    main()
