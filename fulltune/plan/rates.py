"""Rates that links, networks and memory were measured to reach, in place of what their data sheets promise.

`throughput.py` divides bytes by these. The figures are public nccl-tests and BabelStream results, medians of sources
that docs/planning_evidence.md lists under "Rates that were measured"; none is fitted. A link's rate is nccl-tests'
`busbw`: payload x (n-1)/n over time, n being all GPUs of the ring.
"""

from __future__ import annotations

from statistics import median

from fulltune.plan.hardware import Gpu

# bytes/s of a ring among the GPUs of a node, by GPU; of a link over PCIe no measurement is listed
NVSWITCH = {"A100-40": 230.8e9, "A100-80": 230.8e9, "H100": 367.5e9, "H200": 367.5e9}
# bytes/s of a ring between nodes, by what the network of a node carries
NETWORK = {50e9: 41.8e9, 100e9: 96e9, 200e9: 192e9, 400e9: 356e9}
NETWORK_SHARE = median(reached / line for line, reached in NETWORK.items())
# BabelStream's triad, bytes/s; for the others the median share of these two and of a GH200's 3,535 of 4,000 GB/s
MEMORY = {"A100-40": 1377e9, "A100-80": 1725e9}
MEMORY_SHARE = 0.884
# NCCL's own model of a ring (src/graph/tuning.cc): microseconds of a launch, of a hop inside a node and of one between
# nodes, and the share of the bandwidth, for the protocols Simple and LL128
PROTOCOLS = ((8.4, 3.4, 14.0, 1.0), (14.0, 1.9, 4.0, 0.92))


def link(gpu: Gpu) -> float:
    """Bytes/s of a ring among the GPUs of one node."""
    return NVSWITCH.get(gpu.name, gpu.link_bandwidth)


def network(line: float) -> float:
    """Bytes/s of a ring between nodes whose network carries `line` bytes/s into each."""
    return NETWORK.get(line, NETWORK_SHARE * line)


def memory(gpu: Gpu) -> float:
    """Bytes/s of a kernel that only reads and writes."""
    return MEMORY.get(gpu.name, MEMORY_SHARE * gpu.memory_bandwidth)


def ring_time(sent: float, rate: float, *, gpus: int, nodes: int, rounds: float) -> float:
    """Seconds of ring collectives under the faster protocol.

    Args:
        sent: bytes that every GPU sends, over all of them.
        rounds: how many times something goes round the ring: once for each gather or scatter, twice for an all-reduce.
    """
    return min(
        rounds * (base + (gpus - nodes) * hop + (nodes - 1) * network_hop) / 1e6 + sent / (share * rate)
        for base, hop, network_hop, share in PROTOCOLS
    )
