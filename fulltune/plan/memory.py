"""Memory of a run: bytes on each GPU, in host memory and on disk, from shape, sharding and micro-batch.

states + activations + buffers -> Memory. The peak is the largest of three moments: the loss of a later micro-batch (all
states, accumulated gradients, all activations), its backward pass (a layer's gradients, and gradients on their way),
and the optimizer step (activations gone, float32 gradients there). Everything is arithmetic on what the code allocates;
an allowance on top stands for what no tensor accounts for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fulltune.plan.activations import Activations, Attention, Batch, activations
from fulltune.plan.shape import ModelShape
from fulltune.plan.sharding import Sharding
from fulltune.plan.states import FP32, States, states

GIB = 2**30
CONTEXT = GIB  # CUDA context, kernels, NCCL channels and cuBLAS workspaces of one process
FRAGMENTATION = 0.05  # of what is allocated and freed within a step, with expandable segments
PROCESS = 2 * GIB  # a worker's Python, torch and CUDA libraries in host memory
EXPORT_FILE = 4 * GIB  # fulltune.export.FILE_BYTES
RAY_KILLS_AT = 0.95  # of a node's memory: there Ray ends a worker (RAY_memory_usage_threshold)


@dataclass(frozen=True, slots=True)
class Setup:
    """All that decides about memory.

    Attributes:
        dtype_bytes: of weights and activations.
        decay_groups: two parameter groups (train.weight_decay > 0).
        loss_chunk: supervised tokens whose logits exist at a time; 0 for all.
        workers_per_node: that share one host's memory.
    """

    shape: ModelShape
    sharding: Sharding
    batch: Batch
    workers: int
    dtype_bytes: int
    checkpointing: bool
    attention: Attention
    decay_groups: bool = False
    loss_chunk: int = 0
    workers_per_node: int = 1
    on_gpu: bool = True


@dataclass(frozen=True, slots=True)
class GpuBytes:
    """Bytes on one GPU at the peak; the parts add up to `total`.

    Attributes:
        optimizer: master weights and moments.
        logits: of the supervised positions, with their gradients.
        buffers: gathered weights, communication buckets, the copies of the update, the allowance.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.logits + self.buffers


@dataclass(frozen=True, slots=True)
class Memory:
    """Where the bytes are.

    Attributes:
        tensors: peak of one worker's tensors alone, without the allowance.
        host: of one node while training.
        host_loading: of one node while the weights load.
        host_saving: of the node with the first worker while it takes a checkpoint: every save, asynchronous or not,
            first copies each worker's shard into host memory (`fulltune.engine.snapshot`), also what is there already.
        host_export: of the machine that exports.
        nvme: of one node's local disk, for offload.
    """

    gpu: GpuBytes
    tensors: int
    host: int
    host_loading: int
    host_saving: int
    host_export: int
    nvme: int

    @property
    def host_peak(self) -> int:
        """What a node's memory must hold at some moment of a run."""
        return max(self.host, self.host_loading, self.host_saving)


def memory(setup: Setup) -> Memory:
    """The memory of a run."""
    held = _states(setup)
    active = activations(
        setup.shape,
        setup.batch,
        dtype_bytes=setup.dtype_bytes,
        checkpointing=setup.checkpointing,
        attention=setup.attention,
        loss_chunk=setup.loss_chunk,
    )
    resting = resting_buckets(setup) if setup.sharding.stage else 0
    # no gradient is on its way yet while the loss is formed, and the loss is gone once gradients are
    loss = active.saved + active.loss + resting + gathered(setup)
    backward = active.saved + active.working + communication(setup)
    transient = max(loss, backward, held.update + resting_buckets(setup))
    allowance = CONTEXT + int(FRAGMENTATION * transient) if setup.on_gpu else 0
    shown = _shown(active)
    gpu = GpuBytes(
        parameters=held.parameters,
        gradients=held.gradients,
        optimizer=held.optimizer,
        activations=shown.saved + shown.working,
        logits=shown.loss,
        buffers=transient - (shown.saved + shown.working + shown.loss) + allowance,
    )
    per_node = setup.workers_per_node
    host = per_node * (held.host + PROCESS + (0 if setup.on_gpu else gpu.total))
    return Memory(
        gpu=gpu,
        tensors=held.device + transient,
        host=host,
        host_loading=per_node * (_loading(setup) + PROCESS),
        host_saving=per_node * (held.host + PROCESS + (0 if setup.on_gpu else held.device + resting))
        + snapshot_bytes(setup),
        host_export=EXPORT_FILE + 2 * FP32 * setup.shape.largest_tensor + PROCESS,
        nvme=per_node * held.nvme,
    )


def _states(setup: Setup) -> States:
    return states(
        setup.shape,
        setup.sharding,
        workers=setup.workers,
        dtype_bytes=setup.dtype_bytes,
        decay_groups=setup.decay_groups,
    )


def _shown(active: Activations) -> Activations:
    """Loss and a layer's working set follow each other: the larger is shown, so that parts add up to the peak."""
    if active.loss >= active.working:
        return Activations(active.saved, 0, active.loss)
    return Activations(active.saved, active.working - active.loss, active.loss)


def communication(setup: Setup) -> int:
    """Buckets, gathered weights and the gradient on its way, during the backward pass."""
    sharding, e = setup.sharding, setup.dtype_bytes
    if sharding.stage == 0:
        return 0  # gradients are reduced once the backward pass is over: `resting_buckets`
    # one gradient waits for its reduction; one that exceeds the bucket goes alone, with a copy
    largest = setup.shape.largest_tensor
    oversized = 2 * e * largest if largest > sharding.reduce_bucket else 0
    return resting_buckets(setup) + gathered(setup) + oversized


def resting_buckets(setup: Setup) -> int:
    """Buckets that outlive the backward pass; at stage 0 the flat copy in which gradients are reduced."""
    sharding, e = setup.sharding, setup.dtype_bytes
    used = min(sharding.reduce_bucket, setup.shape.parameters)
    if sharding.stage == 0:
        return e * min(500_000_000, setup.shape.parameters)  # deepspeed.runtime.engine.MEMORY_OPT_ALLREDUCE_SIZE
    copies = 2 if sharding.overlap_comm or sharding.stage == 3 else 1  # stage 3: the scattered copy of the bucket
    return copies * e * used


def gathered(setup: Setup) -> int:
    """Weights that stage 3 holds whole beside the shards: up to `max_live`, or the largest tensor if that is more."""
    if setup.sharding.stage != 3:
        return 0
    limit = max(setup.sharding.max_live, setup.shape.largest_tensor) + setup.sharding.prefetch_bucket
    return setup.dtype_bytes * min(limit, setup.shape.parameters)


def _loading(setup: Setup) -> int:
    """Host bytes of one worker while weights load: whole models below stage 3, file by file with it."""
    weights = setup.dtype_bytes * setup.shape.parameters
    return min(weights, 5 * GIB) if setup.sharding.stage == 3 else weights


def snapshot_bytes(setup: Setup) -> int:
    """Host bytes of a checkpoint's copy on the node that holds most of it.

    Every worker copies its share of the optimizer's states; what DeepSpeed writes once for all, the weights below stage
    3 and everything at stage 0, the first worker copies whole. States on NVMe are moved as files.
    """
    whole, sharded = _checkpoint_parts(setup)
    if setup.sharding.offload_optimizer == "nvme":
        sharded = 0
    return whole + math.ceil(setup.workers_per_node * sharded / setup.workers)


def usable(host_memory: int) -> int:
    """What Ray lets the processes of a node with so much memory take."""
    return int(RAY_KILLS_AT * host_memory)


def checkpoint_bytes(setup: Setup) -> int:
    """One sharded checkpoint on shared storage, all workers together: weights, master weights, moments.

    Stages 1 to 3 keep the float32 partition beside the weights; stage 0 in float32 has only the weights.
    """
    return sum(_checkpoint_parts(setup))


def _checkpoint_parts(setup: Setup) -> tuple[int, int]:
    """Bytes that the first worker writes for all, and bytes that all write their share of."""
    count, e = setup.shape.parameters, setup.dtype_bytes
    master = 0 if setup.sharding.stage == 0 and e == FP32 else FP32 * count
    weights = 0 if setup.sharding.stage == 3 else e * count  # stage 3 writes only its float32 partitions
    states = master + 2 * FP32 * count
    return (weights + states, 0) if setup.sharding.stage == 0 else (weights, states)


def export_bytes(setup: Setup) -> int:
    """The exported model on disk."""
    return setup.dtype_bytes * setup.shape.parameters
