"""How long an optimizer step takes on GPUs, before one is rented.

    step = max(matrix products / (efficiency x peak) + memory traffic / bandwidth, hidden communication)
           + exposed communication + optimizer

Matrix products run at a share of the GPU's peak, those of attention on Hopper at two thirds of that; what lies between
them (norms, activations, residuals, logits, gathered weights) waits for memory; communication hides behind both until
it is the longer one, except where nothing runs that could hide it. Sizes are known, bandwidths are what public
benchmarks reached (`rates.py`); the share, one constant per GPU and interconnect, is fitted to half of the published
rows (`published.py`) and tested on the other half: `python -m benchmarks.fit_throughput`. docs/planning_evidence.md
tells which terms were tried and what each gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import log
from statistics import fmean

from fulltune.plan import hardware, published, rates
from fulltune.plan.collectives import Traffic, step_traffic
from fulltune.plan.flops import StepFlops, step_flops_of_sums
from fulltune.plan.hardware import Gpu
from fulltune.plan.memory import Setup
from fulltune.plan.shape import ModelShape
from fulltune.plan.sharding import Sharding
from fulltune.plan.states import FP32

# Bytes that cross the GPU's memory, in bf16, counted operation by operation; float32 moves twice as many (of logits,
# which are float32 in part anyway, at most). Forward, per layer and unit of hidden size: two norms 8, two residual
# additions 12, the activation between MLP matrices 16; the backward pass moves twice as much.
BF16 = 2
LAYER_BYTES = 36
# per logit: written in bf16, cast to float32, softmax, its gradient, cast back, read by two products
LOGIT_BYTES = 24
# per parameter and micro-batch: gathered weights written twice, gradients written, reduced and accumulated
WEIGHT_BYTES = 12
# more of the same where gradients are summed in float32: cast (2 read, 4 written), then read in 4 bytes and not 2
WIDE_REDUCE_BYTES = 8
# per parameter of the optimizer's share: weights, two moments and gradient read, three of them written, in float32
UPDATE_BYTES = 28
# the same as a chain of elementwise kernels (torch's AdamW unless fused, and Composer's): 80, and 12 to clip gradients
UNFUSED_UPDATE_BYTES = 92
# Attention kernels older than FlashAttention-3 use mma.sync, which reaches two thirds of Hopper's tensor cores
# (arXiv 2402.13499, as quoted in the notes of the FlashAttention-3 article); cuBLAS does not.
MMA_SYNC = {"H100": 2 / 3, "H200": 2 / 3}


# Offload, assumed and not fitted: no published row separates it. Bytes/s of a GPU's PCIe link, and of the optimizer
# states that its share of the host's memory streams; Adam reads and writes three states of four bytes.
PCIE = 16e9
HOST_ADAM = 20e9
HOST_UPDATE_BYTES = 24
NVME_SLOWER = 4  # states swapped through local disk

# share of the peak that matrix products reach, by GPU and interconnect; fitted, see the module's docstring
EFFICIENCY = {
    ("A100-40", "nvlink"): 0.66,
    ("A100-40", "rdma-1600"): 0.658,
    ("A100-80", "nvlink"): 0.683,
    ("A100-80", "rdma-1600"): 0.671,
    ("A100-80", "rdma-400"): 0.623,
    ("H100", "nvlink"): 0.559,
    ("H100", "rdma-3200"): 0.559,
    ("H100", "rdma-800"): 0.429,
    ("H200", "nvlink"): 0.745,
}
ASSUMED = 0.623  # for a GPU without rows: the lowest constant of an A100


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one GPU has to do in a step.

    Attributes:
        flops: of its share of the examples.
        tokens, logits: positions that it computes, and those at which it forms logits.
        recomputed_layers: share of the layers that run forward twice.
        updated: parameters whose optimizer states it holds.
        communication, exposed: seconds of its collectives, of those that compute can hide and of those it cannot.
        weight_bytes, update_bytes: memory traffic per parameter of a micro-batch, and of an update.
        host: seconds of copies to the host and of the update there.
        dtype_bytes: of the training dtype; it decides about the peak and the traffic.
    """

    shape: ModelShape
    flops: StepFlops
    tokens: float
    logits: float
    recomputed_layers: float
    micro_batches: float
    updated: float
    communication: float
    exposed: float = 0.0
    weight_bytes: int = WEIGHT_BYTES
    update_bytes: int = UPDATE_BYTES
    host: float = 0.0
    dtype_bytes: int = BF16


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step by what they are spent on; `communication` hides behind `products` and `memory`."""

    products: float
    memory: float
    communication: float
    update: float
    exposed: float = 0.0
    host: float = 0.0

    @property
    def total(self) -> float:
        return max(self.products + self.memory, self.communication) + self.exposed + self.update + self.host


def step_time(work: Work, gpu: Gpu, efficiency: float) -> StepTime:
    """The step of one GPU; all GPUs have the same share, so it is the step of the run."""
    return StepTime(
        products=_products(work, gpu) / (efficiency * gpu.peak(work.dtype_bytes)),
        memory=_moved(work) / rates.memory(gpu),
        communication=work.communication,
        exposed=work.exposed,
        update=work.update_bytes * work.updated / rates.memory(gpu),
        host=work.host,
    )


def _products(work: Work, gpu: Gpu) -> float:
    """FLOPs of matrix products, those of attention counted by the rate that they reach on tensor cores."""
    if work.dtype_bytes == FP32:
        return work.flops.hardware
    # forward and backward, the scores formed again in the backward pass, and the forward pass of checkpointed layers
    attention = work.flops.attention * (1 + 1 / 6 + work.recomputed_layers / 3)
    return work.flops.hardware + (1 / MMA_SYNC.get(gpu.name, 1.0) - 1) * attention


def _moved(work: Work) -> float:
    """Bytes that cross the GPU's memory in the passes."""
    shape = work.shape
    layers = LAYER_BYTES * shape.num_layers * shape.hidden_size * work.tokens * (3 + work.recomputed_layers)
    weights = work.weight_bytes * shape.parameters * work.micro_batches
    return work.dtype_bytes / BF16 * (layers + LOGIT_BYTES * shape.vocab_size * work.logits + weights)


def planned_step(
    setup: Setup,
    gpu: Gpu,
    *,
    tokens: float,
    supervised_tokens: float,
    squared_lengths: float,
    micro_batches: float,
) -> StepTime:
    """The step of a run that is being planned, on nodes as the table of GPUs has them.

    Args:
        tokens, supervised_tokens, squared_lengths: of an average step, over all workers.
        micro_batches: of each worker in an average step.
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
    )
    # All of DeepSpeed's traffic is taken to hide, at every stage. That is not so: 1 and 2 gather weights after the
    # update, 3 pays for its hooks. No published row separates either, and one alone would decide between the stages.
    count, nodes = shape.parameters, node_count(setup)
    on_device = setup.sharding.offload_optimizer == "none"
    work = Work(
        shape=shape,
        flops=flops,
        tokens=tokens / workers,
        logits=supervised_tokens / workers,
        recomputed_layers=recomputed,
        micro_batches=micro_batches,
        updated=count / (workers if setup.sharding.stage else 1) if on_device else 0.0,
        communication=communication_time(traffic, gpu, gpus=workers, nodes=nodes, node_rate=gpu.network_bandwidth),
        host=_offload_time(setup.sharding, count / workers, setup.dtype_bytes, micro_batches),
        dtype_bytes=setup.dtype_bytes,
    )
    return step_time(work, gpu, efficiency(gpu, nodes=nodes))


def node_count(setup: Setup) -> int:
    """How many nodes the workers fill."""
    return -(-setup.workers // setup.workers_per_node)


def efficiency(gpu: Gpu, *, nodes: int) -> float:
    """The constant of a GPU in one node, or between nodes with the network that comes nearest to the table's."""
    if nodes == 1:
        return EFFICIENCY.get((gpu.name, "nvlink"), ASSUMED)
    links = [link for name, link in EFFICIENCY if name == gpu.name and link != "nvlink"]
    nearest = min(links, key=lambda link: abs(node_rate(link) - gpu.network_bandwidth), default="nvlink")
    return EFFICIENCY.get((gpu.name, nearest), ASSUMED)


def _offload_time(sharding: Sharding, share: float, dtype_bytes: int, micro_batches: float) -> float:
    """Gradients down, updated weights up, Adam between; offloaded weights travel up for every gather."""
    seconds = 0.0
    if sharding.offload_optimizer != "none":
        slower = NVME_SLOWER if sharding.offload_optimizer == "nvme" else 1
        seconds += 2 * dtype_bytes * share / PCIE + slower * HOST_UPDATE_BYTES * share / HOST_ADAM
    if sharding.offload_param != "none":
        seconds += 2 * micro_batches * dtype_bytes * share / PCIE
    return seconds


def communication_time(
    traffic: Traffic, gpu: Gpu, *, gpus: int, nodes: int, node_rate: float, calls: float = 0.0
) -> float:
    """Seconds of the collectives alone: the slower of the links inside the nodes and the network between them.

    Args:
        node_rate: bytes/s that the network carries into each node, in each direction.
        calls: gathers and scatters that the traffic is cut into, each of which takes its time round the ring. Zero for
            DeepSpeed, whose buckets and prefetches no published row separates.
    """
    inside = rates.ring_time(traffic.sent(gpus), rates.link(gpu), gpus=gpus, nodes=nodes, rounds=calls)
    if nodes == 1:
        return inside
    crossing = traffic.between_nodes(gpus, nodes)
    return max(inside, rates.ring_time(crossing, rates.network(node_rate), gpus=gpus, nodes=nodes, rounds=calls))


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
    shape = published.model_shape(row.model, row.sequence_length)
    sequences, micro_batches = row.micro_batch * (row.accumulation or 1), row.accumulation or 1
    hidden, exposed = _fsdp_traffic(row, shape, micro_batches)
    wide = row.reduce_dtype == "float32"
    return Work(
        shape=shape,
        flops=published.flops(row, sequences=sequences),
        tokens=sequences * row.sequence_length,
        logits=sequences * row.sequence_length,
        recomputed_layers=published.RECOMPUTED[row.checkpointing],
        micro_batches=micro_batches,
        updated=shape.parameters / row.gpus,
        communication=_fsdp_time(row, gpu, hidden),
        exposed=_fsdp_time(row, gpu, exposed),
        weight_bytes=WEIGHT_BYTES + (WIDE_REDUCE_BYTES if wide else 0),
        update_bytes=UNFUSED_UPDATE_BYTES,
    )


def _fsdp_traffic(row: published.Row, shape: ModelShape, micro_batches: int) -> tuple[Traffic, Traffic]:
    """What FSDP sends in a step, hidden and exposed: every weight gathered twice, gradients scattered, per micro-batch.

    Nothing hides the first layer's gather and the last one's scatter, nor, with backward prefetch "post", any gather of
    the backward pass (https://pytorch.org/docs/2.0/_modules/torch/distributed/fsdp/api.html).
    """
    gather = 2 * shape.parameters * micro_batches
    scatter = (4 if row.reduce_dtype == "float32" else 2) * shape.parameters * micro_batches
    whole = Traffic(reduce_scatter=scatter, all_gather=2 * gather)
    exposed = Traffic(reduce_scatter=scatter, all_gather=gather).share(1 / shape.num_layers)
    if row.backward_prefetch == "post":
        exposed = replace(exposed, all_gather=exposed.all_gather + gather)
    return whole - exposed, exposed


def _fsdp_time(row: published.Row, gpu: Gpu, traffic: Traffic) -> float:
    """Seconds of these collectives; HSDP gathers and scatters within each node and reduces between them."""
    nodes, rate = max(1, row.gpus // 8), node_rate(row.interconnect)
    gathers, scatters = _calls(row, traffic)
    calls = gathers + scatters
    if row.parallelism != "hsdp":
        return communication_time(traffic, gpu, gpus=row.gpus, nodes=nodes, node_rate=rate, calls=calls)
    inside = communication_time(traffic, gpu, gpus=8, nodes=1, node_rate=rate, calls=calls)
    sent = Traffic(all_reduce=traffic.reduce_scatter).sent(nodes)
    between = rates.ring_time(sent, rates.network(rate), gpus=nodes, nodes=nodes, rounds=2 * scatters)
    return max(inside, between)


def _calls(row: published.Row, traffic: Traffic) -> tuple[float, float]:
    """How many gathers and scatters of whole layers these are; FSDP wraps layer by layer."""
    shape = published.model_shape(row.model, row.sequence_length)
    layer = 2 * shape.parameters / shape.num_layers
    return traffic.all_gather / layer, traffic.reduce_scatter / (layer * (2 if row.reduce_dtype == "float32" else 1))


def mean_log(ratios: Sequence[float]) -> float:
    """Mean logarithm of predicted over published: above zero where predictions are too fast on the whole.

    Its zero is least squares, for errors that are factors. Squares let a far row count, which a median never does, and
    a plan's worst error is what costs most.
    """
    return fmean(map(log, ratios))


def fit(
    rows: Iterable[published.Row], centre: Callable[[Sequence[float]], float] = mean_log
) -> dict[tuple[str, str], float]:
    """One efficiency per pair of GPU and interconnect: where `centre` of its rows is zero."""
    by_pair: dict[tuple[str, str], list[published.Row]] = {}
    for row in rows:
        by_pair.setdefault(row.pair, []).append(row)
    return {pair: round(_fit_one(group, centre), 3) for pair, group in sorted(by_pair.items())}


def _fit_one(rows: list[published.Row], centre: Callable[[Sequence[float]], float]) -> float:
    low, high = 0.05, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        fast = centre([predicted_tokens_per_s(row, middle) / row.tokens_per_s for row in rows]) > 0.0
        low, high = (low, middle) if fast else (middle, high)
    return (low + high) / 2


def error(row: published.Row) -> float:
    """Relative error of the prediction with the constants of this module; positive is too fast."""
    return predicted_tokens_per_s(row, EFFICIENCY[row.pair]) / row.tokens_per_s - 1.0
