"""Public memory estimators beside the plan, on published runs: bytes per GPU, and who foresees what fits.

    python -m benchmarks.estimators [--cases]

DeepSpeed's numbers come from its own functions; those of EleutherAI's cookbook (calc/calc_transformer_mem.py), of
accelerate's estimate-memory and of LLaMA-Factory's table (README, hardware requirement) are their formulas, given the
exact number of parameters, so that they are judged on memory and not on counting.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from fulltune.plan import fits
from fulltune.plan.fits import Case
from fulltune.plan.memory import GIB

Estimate = Callable[[Case], float]


def deepspeed_estimate(case: Case) -> float:
    """`estimate_zero2/3_model_states_mem_needs`: states and the largest module; no activations, logits or buckets."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    setup = case.setup
    cluster = {"num_gpus_per_node": setup.workers_per_node, "num_nodes": setup.workers // setup.workers_per_node}
    offload = setup.sharding.offload_optimizer != "none"
    if setup.sharding.stage < 3:
        return float(estimate_zero2_model_states_mem_needs(setup.shape.parameters, **cluster, cpu_offload=offload)[1])
    return float(
        estimate_zero3_model_states_mem_needs(
            setup.shape.parameters,
            setup.shape.largest_tensor,
            **cluster,
            cpu_offload=offload,
            cpu_offload_params=setup.sharding.offload_param != "none",
        )[1]
    )


def cookbook_estimate(case: Case) -> float:
    """EleutherAI: gradients of 4 bytes, an all-gather bucket, live parameters, 34 s b h L of activations."""
    setup, shape = case.setup, case.setup.shape
    count, n, stage = shape.parameters, setup.workers, setup.sharding.stage
    weights = 2 * count / (n if stage == 3 else 1)
    gradients = 4 * count / (n if stage >= 2 else 1)
    optimizer = 12 * count / (n if stage >= 1 else 1)
    buffers = (5e8 * 2 + (1e9 * 2 if stage == 3 else 0)) if n > 1 else 0
    tokens = setup.batch.tokens
    activations = tokens * shape.hidden_size * shape.num_layers * 34
    if not setup.checkpointing:
        activations += tokens * shape.num_layers * 5 * shape.num_heads * min(tokens, 512)
    return weights + gradients + optimizer + buffers + activations


def accelerate_estimate(case: Case) -> float:
    """Four times the float32 weights for training with Adam; it knows no sharding."""
    return 16.0 * case.setup.shape.parameters


def llamafactory_estimate(case: Case) -> float:
    """18 bytes per parameter in mixed precision, shared by the GPUs."""
    return 18.0 * case.setup.shape.parameters / case.setup.workers


def plan_estimate(case: Case) -> float:
    """This plan."""
    return fits.judge(case).gpu_share * case.memory


ESTIMATORS: dict[str, Estimate] = {
    "fulltune plan": plan_estimate,
    "DeepSpeed": deepspeed_estimate,
    "EleutherAI cookbook": cookbook_estimate,
    "LLaMA-Factory table": llamafactory_estimate,
    "accelerate": accelerate_estimate,
}


def _gpu_cases() -> list[Case]:
    """Runs that host memory decided, and offloaded ones, are left out: only two of the estimators know offload."""
    return [case for case in fits.cases() if case.setup.sharding.offload_optimizer == "none"]


def scores() -> str:
    """How many of the published verdicts each estimator foresees, as Markdown."""
    cases = _gpu_cases()
    lines = ["| estimator | right, of all | of those that fitted | of those that did not |", "|---|---|---|---|"]
    for name, estimate in ESTIMATORS.items():
        right = {case.id: (estimate(case) <= case.memory) == case.fits for case in cases}
        parts = [[right[case.id] for case in cases if case.fits is fitted] for fitted in (True, False)]
        counts = [f"{sum(part)} of {len(part)}" for part in ([*parts[0], *parts[1]], *parts)]
        lines.append(f"| {name} | {' | '.join(counts)} |")
    return "\n".join(lines)


def case_table() -> str:
    """Every case with every estimator's GiB per GPU, as Markdown."""
    lines = [
        f"| run | GPU has | {' | '.join(ESTIMATORS)} | happened |",
        f"|---|---|{'---|' * len(ESTIMATORS)}---|",
    ]
    for case in _gpu_cases():
        values = " | ".join(f"{estimate(case) / GIB:.1f}" for estimate in ESTIMATORS.values())
        happened = "fits" if case.fits else "out of memory"
        lines.append(f"| {case.id} | {case.memory / GIB:.1f} | {values} | {happened} |")
    return "\n".join(lines)


def main() -> None:
    """Print the scores, and the cases if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", action="store_true", help="every run with every estimate")
    show_cases = parser.parse_args().cases
    print(scores())
    if show_cases:
        print(f"\n{case_table()}")


if __name__ == "__main__":
    main()
