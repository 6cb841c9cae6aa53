"""How long an optimizer step takes on GPUs, before one is rented.

    step = max(matrix products / (efficiency x peak) + memory traffic / bandwidth, communication) + optimizer

Matrix products run at a share of the GPU's peak; what lies between them (norms, activations, residuals, logits, gathered
weights) waits for memory; communication hides behind both until it is the longer one. Sizes and bandwidths are known;
the share, one constant per GPU and interconnect, is fitted to half of the published rows (`published.py`) and tested on
the other half: `python -m benchmarks.fit_throughput`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from fulltune.plan import published
from fulltune.plan.collectives import Traffic
from fulltune.plan.flops import StepFlops
from fulltune.plan.shape import ModelShape

# Bytes that cross the GPU's memory, in bf16, counted operation by operation. Forward, per layer and unit of hidden size:
# two norms 8, two residual additions 12, the activation between MLP matrices 16; the backward pass moves twice that.
LAYER_BYTES = 36
# per logit: written in bf16, cast to float32, softmax, its gradient, cast back, read by two products
LOGIT_BYTES = 24
# per parameter and micro-batch: gathered weights written twice, gradients written, reduced and accumulated
WEIGHT_BYTES = 12
# per parameter of the optimizer's share: weights, two moments and gradient read, three of them written, in float32
UPDATE_BYTES = 28


@dataclass(frozen=True, slots=True)
class Speed:
    """A GPU as its datasheet has it.

    Attributes:
        peak_flops: dense bf16 products, FLOP/s.
        memory: bytes/s of its memory.
        link: bytes/s, in each direction, to the other GPUs of its node (NVLink, else PCIe).
    """

    peak_flops: float
    memory: float
    link: float


SPEEDS = {
    "A10G": Speed(70e12, 600e9, 25e9),
    "A100-40": Speed(312e12, 1555e9, 300e9),
    "A100-80": Speed(312e12, 2039e9, 300e9),
    "H100-80": Speed(989e12, 3350e9, 450e9),
    "H200": Speed(989e12, 4800e9, 450e9),
}

# share of the peak that matrix products reach, by GPU and interconnect; fitted, see the module's docstring
EFFICIENCY = {
    ("A100-40", "nvlink"): 0.647,
    ("A100-40", "rdma-1600"): 0.660,
    ("A100-80", "nvlink"): 0.686,
    ("A100-80", "rdma-1600"): 0.645,
    ("A100-80", "rdma-400"): 0.622,
    ("H100-80", "nvlink"): 0.473,
    ("H100-80", "rdma-3200"): 0.465,
    ("H100-80", "rdma-800"): 0.392,
    ("H200", "nvlink"): 0.680,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one GPU has to do in a step.

    Attributes:
        flops: of its share of the examples.
        tokens, logits: positions that it computes, and those at which it forms logits.
        recomputed_layers: share of the layers that run forward twice.
        updated: parameters whose optimizer states it holds.
        communication: seconds of its collectives if nothing else ran.
    """

    shape: ModelShape
    flops: StepFlops
    tokens: int
    logits: int
    recomputed_layers: float
    micro_batches: int
    updated: float
    communication: float


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step by what they are spent on; `communication` hides behind `products` and `memory`."""

    products: float
    memory: float
    communication: float
    update: float

    @property
    def total(self) -> float:
        return max(self.products + self.memory, self.communication) + self.update


def step_time(work: Work, gpu: Speed, efficiency: float) -> StepTime:
    """The step of one GPU; all GPUs have the same share, so it is the step of the run."""
    shape = work.shape
    layers = LAYER_BYTES * shape.num_layers * shape.hidden_size * work.tokens * (3 + work.recomputed_layers)
    moved = layers + LOGIT_BYTES * shape.vocab_size * work.logits + WEIGHT_BYTES * shape.parameters * work.micro_batches
    return StepTime(
        products=work.flops.hardware / (efficiency * gpu.peak_flops),
        memory=moved / gpu.memory,
        communication=work.communication,
        update=UPDATE_BYTES * work.updated / gpu.memory,
    )


def communication_time(traffic: Traffic, gpu: Speed, *, gpus: int, nodes: int, node_rate: float) -> float:
    """Seconds of the collectives alone: the slower of the links inside the nodes and the network between them.

    Args:
        node_rate: bytes/s into each node, in each direction.
    """
    inside = traffic.sent(gpus) / gpu.link
    return max(inside, traffic.between_nodes(nodes) / node_rate) if nodes > 1 else inside


def node_rate(interconnect: str) -> float:
    """Bytes/s into a node: "rdma-1600" is 1,600 Gbit/s; inside one node nothing limits."""
    kind, _, gbits = interconnect.partition("-")
    return float(gbits) * 1e9 / 8 if kind == "rdma" else float("inf")


def predicted_tokens_per_s(row: published.Row, efficiency: float) -> float:
    """Tokens per second and GPU of a published configuration."""
    gpu = SPEEDS[row.gpu]
    work = _work(row, gpu)
    return work.tokens / step_time(work, gpu, efficiency).total


def _work(row: published.Row, gpu: Speed) -> Work:
    """FSDP gathers every weight twice and reduce-scatters gradients in every micro-batch; HSDP within each node only."""
    shape = published.model_shape(row.model, row.sequence_length)
    sequences, micro_batches = row.micro_batch * (row.accumulation or 1), row.accumulation or 1
    nodes, rate = max(1, row.gpus // 8), node_rate(row.interconnect)
    whole = 2 * shape.parameters * micro_batches
    if row.parallelism == "hsdp":
        inside = Traffic(reduce_scatter=whole, all_gather=2 * whole).sent(8) / gpu.link
        communication = max(inside, Traffic(all_reduce=whole).between_nodes(nodes) / rate)
    else:
        traffic = Traffic(reduce_scatter=whole, all_gather=2 * whole)
        communication = communication_time(traffic, gpu, gpus=row.gpus, nodes=nodes, node_rate=rate)
    recomputed = published.RECOMPUTED[row.checkpointing]
    return Work(
        shape=shape,
        flops=published.flops(row, sequences=sequences),
        tokens=sequences * row.sequence_length,
        logits=sequences * row.sequence_length,
        recomputed_layers=recomputed,
        micro_batches=micro_batches,
        updated=shape.parameters / row.gpus,
        communication=communication,
    )


def fit(rows: Iterable[published.Row]) -> dict[tuple[str, str], float]:
    """One efficiency per pair of GPU and interconnect: the one whose median prediction is right."""
    by_pair: dict[tuple[str, str], list[published.Row]] = {}
    for row in rows:
        by_pair.setdefault(row.pair, []).append(row)
    return {pair: round(_fit_one(group), 3) for pair, group in sorted(by_pair.items())}


def _fit_one(rows: list[published.Row]) -> float:
    low, high = 0.05, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        fast = median(predicted_tokens_per_s(row, middle) / row.tokens_per_s for row in rows) > 1.0
        low, high = (low, middle) if fast else (middle, high)
    return (low + high) / 2


def error(row: published.Row) -> float:
    """Relative error of the prediction with the constants of this module; positive is too fast."""
    return predicted_tokens_per_s(row, EFFICIENCY[row.pair]) / row.tokens_per_s - 1.0
