"""Peak memory of a worst-case step: measured on every worker, held against what the device and its node have."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fulltune import device
from fulltune.plan.memory import FRAGMENTATION, usable
from fulltune.plan.planner import gb
from fulltune.preflight.check import Check, judged
from fulltune.preflight.facts import Facts, by_node, status

LESS = (
    "lower train.micro_batch_tokens, set train.gradient_checkpointing=true, or take a deepspeed file that shards more "
    "(zero3) or offloads (zero3_offload)"
)


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes that one worker took at its peak.

    Attributes:
        device: of a GPU: torch's peak with the allowance for fragmentation, and what lives beside torch; on a CPU what
            the process grew by.
        host: resident in host memory, all of the process.
    """

    device: int
    host: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Measures from `start` on."""

    on_gpu: bool
    resident: int

    def use(self) -> Use:
        """The peak so far."""
        host = status("VmHWM")
        return Use(device=_cuda_peak() if self.on_gpu else host - self.resident, host=host)


def start(*, on_gpu: bool) -> Watch:
    """Begins a measurement: peaks of the past are forgotten where the kernel allows it."""
    if on_gpu:
        device.reset_peak(device.current_gpu())
    with contextlib.suppress(OSError):  # a container that forbids it; the peak then includes start-up
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts over: proc(5)
    return Watch(on_gpu=on_gpu, resident=status("VmRSS"))


def _cuda_peak() -> int:
    gpu = device.current_gpu()
    return int(device.bytes_beside_torch(gpu) + (1 + FRAGMENTATION) * (device.peak_bytes(gpu) or 0))


def capacity(everybody: Sequence[Facts], host_limit: int | None) -> int:
    """Bytes that `Use.device` may reach on the worker that has least.

    Args:
        host_limit: bytes per node that replace what the nodes have.
    """
    gpus = [facts.device_memory for facts in everybody if facts.device_memory is not None]
    if gpus:
        return min(gpus)
    return min(
        (node_limit(group, host_limit) - sum(facts.resident for facts in group)) // len(group)
        for group in by_node(everybody).values()
    )


def node_limit(group: Sequence[Facts], host_limit: int | None) -> int:
    """Bytes that the workers of a node may hold together: what Ray lets them have, and what others left."""
    if host_limit is not None:
        return usable(host_limit)
    free = max(facts.host_available for facts in group) + sum(facts.resident for facts in group)
    return min(usable(group[0].host_memory), free)


def hopeless(everybody: Sequence[Facts], floor: int, host_limit: int | None) -> str | None:
    """Why not even to try: a node would have to hold more than it may, and the kernel would end whatever it likes.

    Args:
        floor: bytes of tensors that by plan each worker keeps in host memory.
    """
    for node, group in by_node(everybody).items():
        if floor * len(group) > (limit := node_limit(group, host_limit)):
            return f"not tried: by plan {gb(floor * len(group))} of host memory on {node}, which has {gb(limit)} for it"
    return None


def check_device(used: Mapping[int, Use], planned: int, room: int) -> Check:
    """The fullest GPU against the smallest.

    Args:
        used: worker -> peak.
        planned: bytes for this very micro-batch.
    """
    rank, use = max(used.items(), key=lambda item: item[1].device)
    return judged(
        "GPU memory",
        ok=use.device <= room,
        got=f"{gb(use.device)} at the peak on worker {rank}; {against(use.device, planned)}",
        wanted=f"at most {gb(room)}",
        fix=LESS,
    )


def against(measured: int, planned: int) -> str:
    """`the plan says 1.2 GB (measured +3 %)`."""
    return f"the plan says {gb(planned)} (measured {measured / planned - 1:+.0%})"


def check_host(
    everybody: Sequence[Facts], used: Mapping[int, Use], host_limit: int | None, beside: str, *, saving: int = 0
) -> Check:
    """The fullest node: the peaks of its workers together, and the copies that a save will make beside them.

    Args:
        beside: a word on the plan, "" where it says nothing.
        saving: bytes by plan that a checkpoint takes of the host above a step's peak, for each worker.
    """

    def needed(group: Sequence[Facts]) -> int:
        return _held(group, used) + saving * len(group)

    worst = max(by_node(everybody).values(), key=lambda group: needed(group) - node_limit(group, host_limit))
    held, limit = _held(worst, used), node_limit(worst, host_limit)
    each = max(used[facts.rank].host for facts in worst)
    whose = "--host-memory" if host_limit is not None else f"a memory of {gb(worst[0].host_memory)}"
    return judged(
        "host memory",
        ok=needed(worst) <= limit,
        got=f"{gb(held)} for {len(worst)} worker(s) on {worst[0].node}, {gb(each)} at most each"
        + (f"; by plan {gb(saving * len(worst))} more for the copies that a save makes" if saving else "")
        + (f"; {beside}" if beside else ""),
        wanted=f"at most {gb(limit)}, what {whose} leaves them",
        fix=f"fewer workers per node (ray.cpus_per_worker) or nodes with more memory; else {LESS}",
    )


def _held(group: Sequence[Facts], used: Mapping[int, Use]) -> int:
    return sum(used[facts.rank].host for facts in group)
