"""The peak of a run is that of one moment: the loss, the backward pass, or the update, whichever needs most."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.plan_memory import SMALL, deepspeed, plan_peak
from fulltune.plan import memory, shape, sharding
from fulltune.plan.activations import Batch, activations

# medians of three runs on one CPU worker (docs/planning_evidence.md), bytes
MEASURED = {("deep", 0): 233_799_680, ("deep", 1): 271_212_544, ("wordy", 1): 241_377_280, ("wordy", 3): 247_889_920}


def test_peaks_of_a_process_are_predicted():
    for (name, stage), measured in MEASURED.items():
        assert abs(plan_peak(SMALL[name], stage, 1) / measured - 1) <= 0.10, (name, stage)


def setup(**changes):
    made = memory.Setup(
        shape=shape.of(SMALL["wordy"]),
        sharding=sharding.read(deepspeed(1)),
        batch=Batch(384, 192),
        workers=1,
        dtype_bytes=4,
        checkpointing=False,
        attention="segments",
        on_gpu=False,
    )
    return replace(made, **changes)


def test_a_gradient_on_its_way_and_the_loss_are_not_there_at_once():
    made = setup()
    held = activations(made.shape, made.batch, dtype_bytes=4, checkpointing=False, attention="segments")
    oversized = memory.communication(made) - memory.resting_buckets(made)
    assert oversized == 2 * 4 * made.shape.largest_tensor
    transient = memory.memory(made).tensors - memory.memory(setup(batch=Batch(1, 1))).tensors
    assert transient < held.saved + held.loss
    few = setup(batch=Batch(384, 1))  # hardly any logits: the backward pass decides
    without = replace(few.sharding, reduce_bucket=few.shape.largest_tensor)
    assert memory.memory(few).tensors > memory.memory(replace(few, sharding=without)).tensors


def test_a_save_copies_every_shard_into_host_memory():
    """Also states that are offloaded are copied, and below stage 3 the first worker copies the weights whole."""
    model = shape.of(SMALL["deep"])
    count = model.parameters
    two = {"workers": 4, "workers_per_node": 2, "on_gpu": True, "dtype_bytes": 2, "shape": model}
    for stage, whole in ((1, 2 * count), (2, 2 * count), (3, 0)):
        found = memory.memory(setup(sharding=sharding.read(deepspeed(stage)), **two))
        assert found.host_saving - found.host == whole + 12 * count // 2, stage
    offloaded = deepspeed(3) | {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    found = memory.memory(setup(sharding=sharding.read(offloaded), **two))
    assert found.host_saving == found.host + 12 * count // 2 == found.host_peak
    on_disk = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}
    found = memory.memory(setup(sharding=sharding.read(on_disk), **two))
    assert found.host_saving == found.host  # these files move
    alone = memory.memory(setup(sharding=sharding.read(deepspeed(0)), workers=2, workers_per_node=1))
    assert alone.host_saving >= memory.checkpoint_bytes(setup(sharding=sharding.read(deepspeed(0)))) + memory.PROCESS


def test_on_cpus_the_copy_meets_states_but_no_activations():
    made = setup(batch=Batch(100_000, 50_000))
    found = memory.memory(made)
    rest = memory.PROCESS + found.gpu.parameters + found.gpu.gradients + found.gpu.optimizer
    assert found.host_saving == rest + memory.resting_buckets(made) + memory.snapshot_bytes(made)
    assert found.host_saving < found.host
