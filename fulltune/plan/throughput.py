"""How long an optimizer step takes on GPUs, before one is rented.

    step = max(matrix products / (efficiency x peak) + memory traffic / bandwidth, communication) + optimizer

Matrix products run at a share of the GPU's peak; what lies between them (norms, activations, residuals, logits,
gathered weights) waits for memory; communication hides behind both until it is the longer one. Sizes and bandwidths are
known; the share, one constant per GPU and interconnect, is fitted to half of the published rows (`published.py`) and
tested on the other half: `python -m benchmarks.fit_throughput`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from fulltune.plan import hardware, published
from fulltune.plan.collectives import REUSE_DISTANCE, Traffic, step_traffic
from fulltune.plan.flops import StepFlops, step_flops_of_sums
from fulltune.plan.hardware import Gpu
from fulltune.plan.memory import Setup
from fulltune.plan.shape import ModelShape
from fulltune.plan.sharding import Sharding

# Bytes that cross the GPU's memory, in bf16, counted operation by operation. Forward, per layer and unit of hidden
# size: two norms 8, two residual additions 12, the activation between MLP matrices 16; the backward pass moves twice
# as much.
LAYER_BYTES = 36
# per logit: written in bf16, cast to float32, softmax, its gradient, cast back, read by two products
LOGIT_BYTES = 24
# per parameter and micro-batch: gathered weights written twice, gradients written, reduced and accumulated
WEIGHT_BYTES = 12
# per parameter of the optimizer's share: weights, two moments and gradient read, three of them written, in float32
UPDATE_BYTES = 28


# Offload, assumed and not fitted: no published row separates it. Bytes/s of a GPU's PCIe link, and of the optimizer
# states that its share of the host's memory streams; Adam reads and writes three states of four bytes.
PCIE = 16e9
HOST_ADAM = 20e9
HOST_UPDATE_BYTES = 24

# share of the peak that matrix products reach, by GPU and interconnect; fitted, see the module's docstring
EFFICIENCY = {
    ("A100-40", "nvlink"): 0.647,
    ("A100-40", "rdma-1600"): 0.660,
    ("A100-80", "nvlink"): 0.686,
    ("A100-80", "rdma-1600"): 0.645,
    ("A100-80", "rdma-400"): 0.622,
    ("H100", "nvlink"): 0.473,
    ("H100", "rdma-3200"): 0.465,
    ("H100", "rdma-800"): 0.392,
    ("H200", "nvlink"): 0.680,
}
ASSUMED = 0.62  # for a GPU without rows: the lowest constant of an A100


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one GPU has to do in a step.

    Attributes:
        flops: of its share of the examples.
        tokens, logits: positions that it computes, and those at which it forms logits.
        recomputed_layers: share of the layers that run forward twice.
        updated: parameters whose optimizer states it holds.
        communication: seconds of its collectives if nothing else ran.
        host: seconds of copies to the host and of the update there.
    """

    shape: ModelShape
    flops: StepFlops
    tokens: float
    logits: float
    recomputed_layers: float
    micro_batches: int
    updated: float
    communication: float
    host: float = 0.0


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step by what they are spent on; `communication` hides behind `products` and `memory`."""

    products: float
    memory: float
    communication: float
    update: float
    host: float = 0.0

    @property
    def total(self) -> float:
        return max(self.products + self.memory, self.communication) + self.update + self.host


def step_time(work: Work, gpu: Gpu, efficiency: float) -> StepTime:
    """The step of one GPU; all GPUs have the same share, so it is the step of the run."""
    shape = work.shape
    layers = LAYER_BYTES * shape.num_layers * shape.hidden_size * work.tokens * (3 + work.recomputed_layers)
    moved = layers + LOGIT_BYTES * shape.vocab_size * work.logits + WEIGHT_BYTES * shape.parameters * work.micro_batches
    return StepTime(
        products=work.flops.hardware / (efficiency * gpu.bf16_flops),
        memory=moved / gpu.memory_bandwidth,
        communication=work.communication,
        update=UPDATE_BYTES * work.updated / gpu.memory_bandwidth,
        host=work.host,
    )


def planned_step(
    setup: Setup,
    gpu: Gpu,
    *,
    tokens: float,
    supervised_tokens: float,
    squared_lengths: float,
    micro_batches: int,
    reuse_distance: int = REUSE_DISTANCE,
) -> StepTime:
    """The step of a run that is being planned, on nodes as the table of GPUs has them.

    Args:
        tokens, supervised_tokens, squared_lengths: of an average step, over all workers.
        micro_batches: of each worker in a step.
    """
    shape, workers = setup.shape, setup.workers
    recomputed = 1.0 if setup.checkpointing else 0.0
    flops = step_flops_of_sums(
        shape,
        tokens=tokens / workers,
        squared_lengths=squared_lengths / workers,
        supervised_tokens=supervised_tokens / workers,
        recomputed_layers=recomputed,
    )
    traffic = step_traffic(
        shape,
        setup.sharding,
        workers=workers,
        micro_batches=micro_batches,
        dtype_bytes=setup.dtype_bytes,
        reuse_distance=reuse_distance,
    )
    nodes, rate = -(-workers // setup.workers_per_node), gpu.network_bandwidth * gpu.node_size
    on_device = setup.sharding.offload_optimizer == "none"
    work = Work(
        shape=shape,
        flops=flops,
        tokens=tokens / workers,
        logits=supervised_tokens / workers,
        recomputed_layers=recomputed,
        micro_batches=micro_batches,
        updated=shape.parameters / (workers if setup.sharding.stage else 1) if on_device else 0.0,
        communication=communication_time(traffic, gpu, gpus=workers, nodes=nodes, node_rate=rate),
        host=_offload_time(setup.sharding, shape.parameters / workers, setup.dtype_bytes, micro_batches),
    )
    return step_time(work, gpu, efficiency(gpu, nodes=nodes))


def efficiency(gpu: Gpu, *, nodes: int) -> float:
    """The constant of a GPU in one node, or between nodes with the network that comes nearest to the table's."""
    if nodes == 1:
        return EFFICIENCY.get((gpu.name, "nvlink"), ASSUMED)
    rate = gpu.network_bandwidth * gpu.node_size
    links = [link for name, link in EFFICIENCY if name == gpu.name and link != "nvlink"]
    nearest = min(links, key=lambda link: abs(node_rate(link) - rate), default="nvlink")
    return EFFICIENCY.get((gpu.name, nearest), ASSUMED)


def _offload_time(sharding: Sharding, share: float, dtype_bytes: int, micro_batches: int) -> float:
    """Gradients down, updated weights up, Adam between; offloaded weights travel up for every gather as well."""
    if sharding.offload_optimizer == "none":
        return 0.0
    gathers = 2 * micro_batches if sharding.offload_param != "none" else 0
    return (2 + gathers) * dtype_bytes * share / PCIE + HOST_UPDATE_BYTES * share / HOST_ADAM


def communication_time(traffic: Traffic, gpu: Gpu, *, gpus: int, nodes: int, node_rate: float) -> float:
    """Seconds of the collectives alone: the slower of the links inside the nodes and the network between them.

    Args:
        node_rate: bytes/s into each node, in each direction.
    """
    inside = traffic.sent(gpus) / gpu.link_bandwidth
    return max(inside, traffic.between_nodes(nodes) / node_rate) if nodes > 1 else inside


def node_rate(interconnect: str) -> float:
    """Bytes/s into a node: "rdma-1600" is 1,600 Gbit/s; inside one node nothing limits."""
    kind, _, gbits = interconnect.partition("-")
    return float(gbits) * 1e9 / 8 if kind == "rdma" else float("inf")


def predicted_tokens_per_s(row: published.Row, efficiency: float) -> float:
    """Tokens per second and GPU of a published configuration."""
    gpu = hardware.gpu(row.gpu)
    work = _work(row, gpu)
    return work.tokens / step_time(work, gpu, efficiency).total


def _work(row: published.Row, gpu: Gpu) -> Work:
    """FSDP gathers every weight twice and scatters gradients in every micro-batch; HSDP does within each node only."""
    shape = published.model_shape(row.model, row.sequence_length)
    sequences, micro_batches = row.micro_batch * (row.accumulation or 1), row.accumulation or 1
    nodes, rate = max(1, row.gpus // 8), node_rate(row.interconnect)
    whole = 2 * shape.parameters * micro_batches
    if row.parallelism == "hsdp":
        inside = Traffic(reduce_scatter=whole, all_gather=2 * whole).sent(8) / gpu.link_bandwidth
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
