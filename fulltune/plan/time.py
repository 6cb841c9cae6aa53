"""How long a step takes and what the run costs: a first estimate from FLOPs, bytes and stated efficiencies.

The seam for a finer model: `step_seconds` is all that the rest of a plan asks for. Nothing here was measured on a GPU.
"""

from __future__ import annotations

from fulltune.plan.hardware import Gpu
from fulltune.plan.memory import Setup
from fulltune.plan.shape import ModelShape
from fulltune.plan.workload import Workload

# useful FLOPs per peak FLOP while nothing waits for the network. llm-foundry's benchmarking README has 0.49-0.64 for
# 7B to 70B on A100-80, 0.44-0.51 on A100-40 and 0.36-0.46 on H100, bf16
MFU = {"A100-40": 0.44, "A100-80": 0.50}
MFU_OTHER = 0.40
SOURCE = "published bf16 rows of llm-foundry"
CPU_FLOPS = 40e9  # per core, useful, float32: measured with a 135M model on a 2-core virtual machine
PCIE = 16e9  # bytes per second to the host
CPU_ADAM = 20e9  # bytes per second of optimizer state that a GPU's share of the host's memory streams


def mfu(gpu: Gpu) -> float:
    """The efficiency that a plan assumes."""
    return MFU.get(gpu.name, MFU_OTHER)


def step_seconds(setup: Setup, work: Workload, gpu: Gpu | None, *, cpus: float = 1.0) -> float:
    """Seconds of one optimizer step; `gpu` None for CPU workers with `cpus` cores each."""
    flops = training_flops(setup.shape, work) / work.steps * (4 / 3 if setup.checkpointing else 1)
    if gpu is None:
        return flops / (CPU_FLOPS * cpus * setup.workers)
    compute = flops / (mfu(gpu) * gpu.bf16_flops * setup.workers)
    return max(compute, _communication_seconds(setup, work, gpu)) + _offload_seconds(setup)


def training_flops(shape: ModelShape, work: Workload) -> float:
    """Forward and backward FLOPs of the run: 6 per weight and token, and causal attention inside each example.

    The input embedding is a look-up; logits exist for supervised tokens only.
    """
    table = shape.vocab_size * shape.hidden_size
    body = shape.parameters - table * (1 if shape.tie_embeddings else 2)
    attention = 6 * shape.num_layers * shape.num_heads * shape.head_dim * work.squares
    return 6 * (body * work.tokens + table * work.supervised) + attention


def _communication_seconds(setup: Setup, work: Workload, gpu: Gpu) -> float:
    """A ring's time for the step's collectives: stage 3 gathers twice and scatters once per micro-batch."""
    rounds = {0: 2, 1: 2, 2: 1 + work.micro_batches, 3: 3 * work.micro_batches}[setup.sharding.stage]
    volume = rounds * setup.dtype_bytes * setup.shape.parameters * (setup.workers - 1) / setup.workers
    inside = setup.workers <= gpu.node_size
    return volume / (gpu.link_bandwidth if inside else gpu.network_bandwidth)


def _offload_seconds(setup: Setup) -> float:
    """Gradients down, weights up, and Adam on the host: read and written, three states of four bytes."""
    if setup.sharding.offload_optimizer == "none":
        return 0.0
    share = setup.shape.parameters / setup.workers
    slower = 4 if setup.sharding.offload_optimizer == "nvme" else 1
    return 2 * setup.dtype_bytes * share / PCIE + slower * 2 * 12 * share / CPU_ADAM
