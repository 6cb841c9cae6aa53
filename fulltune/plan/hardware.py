"""GPU types and what they cost: the two tables behind a plan, each row with its source.

Nothing here was measured by fulltune. Prices move: each carries its date, and `--price` or
`ray.usd_per_gpu_hour` replaces it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from fulltune.plan.states import FP32
from tasks.base import UserError

GIB = 2**30
# peaks without sparsity, and bandwidths, as public pages quote NVIDIA's data sheets
QUOTED = "data sheet as quoted in docs/planning_evidence.md"
FP32_SOURCE = "NVIDIA data sheet"  # of the float32 peaks


@dataclass(frozen=True, slots=True)
class Gpu:
    """One type of accelerator.

    Attributes:
        name: short, with the memory size where the type alone does not tell; `ray_label` has Ray's name for it.
        memory: bytes that CUDA reports as total, less than the nominal size.
        bf16_flops: peak of dense bfloat16 matrix products with float32 accumulation, per second; of float16 as well.
        fp32_flops: the same of float32 ones, outside the tensor cores: `fulltune.device.attach` keeps TF32 off.
        memory_bandwidth: bytes per second, by the data sheet as all three; what is reached of them is in `rates.py`.
        link_bandwidth: bytes per second to the other GPUs of a usual node, one direction.
        network_bandwidth: bytes per second into each node from the others, shared by its GPUs, one direction.
        node_size: GPUs of that instance.
        node_memory: bytes of its host memory.
        source: of memory and peak.
    """

    name: str
    memory: int
    bf16_flops: float
    fp32_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    node_size: int
    node_memory: int
    source: str

    def peak(self, dtype_bytes: int) -> float:
        """Matrix products per second in a training dtype of that size."""
        return self.fp32_flops if dtype_bytes == FP32 else self.bf16_flops


@dataclass(frozen=True, slots=True)
class Price:
    """USD per GPU and hour, without discounts, with its date and where it was read."""

    gpu: str
    usd_per_hour: float
    date: str
    source: str


def _gpu(
    name: str,
    gib: float,
    tflops: tuple[float, float],
    hbm: float,
    link: float,
    gbit: float,
    node: tuple[int, int],
    source: str,
) -> Gpu:
    """A row in the units people quote: GiB, (bf16, fp32) TFLOP/s, GB/s, GB/s, Gbit/s per node, (GPUs, GiB) of it."""
    bf16, fp32 = tflops
    size, host = node
    return Gpu(
        name=name,
        memory=int(gib * GIB),
        bf16_flops=bf16 * 1e12,
        fp32_flops=fp32 * 1e12,
        memory_bandwidth=hbm * 1e9,
        link_bandwidth=link * 1e9,
        network_bandwidth=gbit * 1e9 / 8,
        node_size=size,
        node_memory=host * GIB,
        source=source,
    )


# total memory: what CUDA's out-of-memory messages report, smallest figure seen in public issues
GPUS: tuple[Gpu, ...] = (
    _gpu("A10G", 21.99, (70, 35), 600, 16, 100, (8, 768), f"A10 capacity: CogVLM issue 236; {QUOTED}; g5.48xlarge"),
    _gpu("L4", 21.99, (121, 30.3), 300, 16, 100, (8, 768), f"{QUOTED}; memory as A10; g6.48xlarge"),
    _gpu(
        "L40S",
        44.40,
        (362, 91.6),
        864,
        32,
        400,
        (8, 1536),
        f"L40 capacity: Qwen3-VL issue 2097; {QUOTED}; g6e.48xlarge",
    ),
    _gpu("RTX-4090", 23.52, (165, 82.6), 1008, 16, 10, (1, 64), f"SoulX-FlashTalk issue 5; {QUOTED}; a workstation"),
    _gpu("A100-40", 39.50, (312, 19.5), 1555, 300, 400, (8, 1152), f"CoSeR issue 10; {QUOTED}; p4d.24xlarge"),
    _gpu("A100-80", 79.14, (312, 19.5), 2039, 300, 400, (8, 1152), f"Control-GIC issue 6; {QUOTED}; p4de.24xlarge"),
    _gpu("H100", 79.11, (989, 67), 3350, 450, 3200, (8, 2048), f"vLLM issue 27508; {QUOTED}; p5.48xlarge"),
    _gpu(
        "H200",
        139.0,
        (989, 67),
        4800,
        450,
        3200,
        (8, 2048),
        f"141 GB less the reserve of its siblings; {QUOTED}; p5en.48xlarge",
    ),
)

# names that Ray or people use for a row above; a bare A100 is planned as the smaller one
ALIASES = {
    "A10": "A10G",
    "A100": "A100-40",
    "A100-40G": "A100-40",
    "A100-80G": "A100-80",
    "H100-80": "H100",
    "4090": "RTX-4090",
    "GEFORCE-RTX-4090": "RTX-4090",
}

# names that stand for several sizes, of which a plan takes the smallest: the largest
SEVERAL_SIZES = {"A100": "A100-80"}

# Ray makes the label of a node from NVML's name of its first GPU: without the memory size, and consumer cards whole
# (ray/_private/accelerators/nvidia_gpu.py). Its own A100-40G and A100-80G are on a node only where someone put them.
RAY_LABELS = {
    "A100-40": "A100",
    "A100-80": "A100",
    "H100-80": "H100",
    "4090": "GeForce-RTX-4090",
    "RTX-4090": "GeForce-RTX-4090",
    "GEFORCE-RTX-4090": "GeForce-RTX-4090",
}

# on demand in us-east-1, Linux: an eighth of the instance whose host memory and network stand above
RECEIPTS = "https://raw.githubusercontent.com/datareceipts/data-receipts/main/109-gpu-pricing/hyperscalers.json"
VANTAGE = "instances.vantage.sh, as kept in https://github.com/tsaol/aws-gpu data/all_gpu_instances.js"
PRICES: tuple[Price, ...] = (
    Price("A10G", 16.288 / 8, "2025-11", f"AWS g5.48xlarge; {VANTAGE}"),
    Price("L4", 13.3504 / 8, "2025-11", f"AWS g6.48xlarge; {VANTAGE}"),
    Price("L40S", 30.13118 / 8, "2025-11", f"AWS g6e.48xlarge; {VANTAGE}"),
    Price("A100-40", 21.957642 / 8, "2026-11", f"AWS p4d.24xlarge; {RECEIPTS}"),
    Price("A100-80", 27.44705 / 8, "2026-11", f"AWS p4de.24xlarge; {RECEIPTS}"),
    Price("H100", 55.04 / 8, "2026-11", f"AWS p5.48xlarge; {RECEIPTS}"),
    Price("H200", 63.296 / 8, "2026-08", "AWS p5en.48xlarge; https://github.com/dstackai/dstack/pull/4110"),
)


def gpu(name: str) -> Gpu:
    """The row of that name, upper or lower case.

    Raises:
        UserError: no such type; the message has the nearest.
    """
    wanted = _spelled(name)
    wanted = ALIASES.get(wanted, wanted)
    known = {row.name: row for row in GPUS}
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, [*known, *ALIASES], n=1, cutoff=0.75)
    raise UserError(
        got=f"GPU type {name!r}",
        wanted=f"one of {', '.join(row.name for row in GPUS)}",
        fix=(f"did you mean {near[0]!r}? " if near else "") + "for another type add --gpu NAME of the one nearest in "
        "memory: its figures are planned with, and workers are placed by ray.accelerator_type all the same",
    )


def largest(name: str) -> str | None:
    """The largest size of a type whose name leaves its size open; None for a name that says it."""
    return SEVERAL_SIZES.get(_spelled(name))


def ray_label(name: str) -> str:
    """What Ray calls the nodes with this type of GPU: for `ScalingConfig(accelerator_type=...)` and node resources.

    A type that the table does not have is taken for Ray's own name.
    """
    wanted = _spelled(name)
    known = wanted in ALIASES or any(row.name == wanted for row in GPUS)
    return RAY_LABELS.get(wanted, wanted if known else name)


def _spelled(name: str) -> str:
    return name.upper().replace("_", "-").removeprefix("NVIDIA-")


def price(name: str) -> Price | None:
    """The listed price of a GPU type; None where no source is at hand."""
    return next((row for row in PRICES if row.gpu == name), None)


def usd_per_hour(name: str, own: float | None) -> float | None:
    """Of one GPU: the user's own price, else the listed one; None where neither is known."""
    listed = price(name)
    if own is not None or listed is None:
        return own
    return listed.usd_per_hour
