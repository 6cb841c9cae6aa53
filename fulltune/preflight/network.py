"""What the workers' process group carries: all-reduce and all-gather rates, and how far the nodes' clocks are apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fulltune import device
from fulltune.plan import rates
from fulltune.plan.hardware import Gpu
from fulltune.plan.planner import gb
from fulltune.preflight.check import Check, judged

if TYPE_CHECKING:
    import torch

    from fulltune.comm import Workers

CPU_BYTES, GPU_BYTES = 2**24, 2**28
REPEATS = 5
# of the planned rate: below it NCCL has fallen back to another interface, and time and cost are other ones
SLOWEST_SHARE = 0.1
CLOCK_SKEW_S = 1.0


@dataclass(frozen=True, slots=True)
class Network:
    """What the collectives measured; the same on every worker.

    Attributes:
        all_reduce, all_gather: bytes/s through each worker's links (bus bandwidth: what a ring has to carry, by time).
        clock_skew: seconds between the fastest and the slowest clock, an upper bound.
    """

    workers: int
    bytes: int
    all_reduce: float
    all_gather: float
    clock_skew: float

    def as_json(self) -> dict[str, Any]:
        """As it is recorded."""
        return asdict(self)


def measure(workers: Workers, target: torch.device) -> Network | None:
    """Rates over the default process group, the training's; None for a single worker. Every worker calls it."""
    if workers.size == 1:
        return None
    import torch
    import torch.distributed as dist

    size = CPU_BYTES if target.type == "cpu" else GPU_BYTES
    share = size // (4 * workers.size)
    whole = torch.zeros(share * workers.size, device=target)
    part = torch.zeros(share, device=target)
    ring = (workers.size - 1) / workers.size * 4 * whole.numel()
    return Network(
        workers=workers.size,
        bytes=size,
        all_reduce=2 * ring / _seconds(lambda: dist.all_reduce(whole), workers, target),
        all_gather=ring / _seconds(lambda: dist.all_gather_into_tensor(whole, part), workers, target),
        clock_skew=min(_skew(workers) for _ in range(REPEATS)),
    )


def _seconds(collective: Callable[[], Any], workers: Workers, target: torch.device) -> float:
    """The median of a few, on the slowest worker; the first, which makes the connections, does not count."""
    from fulltune.device import Stopwatch

    collective()
    clock = Stopwatch(target)
    laps = []
    for _ in range(REPEATS):
        workers.barrier()
        clock.lap()
        collective()
        laps.append(clock.lap())
    return float(max(workers.gather(sorted(laps)[REPEATS // 2])))


def _skew(workers: Workers) -> float:
    """Clocks read right after a barrier: apart by their skew, and by how unevenly the barrier lets go."""
    workers.barrier()
    clocks = workers.gather(time.time())
    return float(max(clocks) - min(clocks))


def check_collectives(found: Network | None, gpu: Gpu | None, *, nodes: int) -> Check:
    """The rates against the table's, for a GPU that it has."""
    if found is None:
        return Check("collectives", True, "one worker: none needed")
    rate = 0.0 if gpu is None else rates.link(gpu)
    if gpu is not None and nodes > 1:
        rate = min(rate, rates.network(gpu.network_bandwidth))
    wanted = f"at least {gb(int(SLOWEST_SHARE * rate))}/s, {SLOWEST_SHARE:.0%} of what the plan counts on"
    return judged(
        "collectives",
        ok=min(found.all_reduce, found.all_gather) >= SLOWEST_SHARE * rate,
        got=f"all-reduce {gb(int(found.all_reduce))}/s, all-gather {gb(int(found.all_gather))}/s over {found.workers} "
        f"workers on {nodes} node(s), {gb(found.bytes)} at a time",
        wanted=wanted if rate else "collectives that end",
        fix=f"{device.COLLECTIVES_LOG} shows which interface was taken; set {device.COLLECTIVES_INTERFACE}, or take "
        "nodes with a faster link",
    )


def check_clocks(found: Network | None) -> Check:
    """Times of files and logs on different nodes must mean the same; credentials of object stores expire by them."""
    if found is None:
        return Check("clocks", True, "one worker: one clock")
    return judged(
        "clocks",
        ok=found.clock_skew <= CLOCK_SKEW_S,
        got=f"at most {found.clock_skew * 1000:,.1f} ms apart",
        wanted=f"at most {CLOCK_SKEW_S:g} s",
        fix="run chrony or ntpd on every node",
    )
