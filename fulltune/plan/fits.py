"""Published runs that fitted their machines, and some that did not: what the memory model is held against.

`fits.csv` has one line per run, with its source; where a source leaves something open, the note says what was taken.
Their programs differ from this one in two ways that decide near the boundary, and the check allows for both: they form
logits at every position, and some update with an AdamW that needs temporaries (`adam: unfused`; LlamaFactory issue 1221
shows the line that fails). Those are as large as one of the optimizer's tensors: a layer's shard under FSDP, everything
that a worker owns under DeepSpeed.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from fulltune.plan import hardware, published
from fulltune.plan.activations import Batch
from fulltune.plan.memory import GIB, Setup, memory
from fulltune.plan.shape import ModelShape
from fulltune.plan.sharding import Sharding
from fulltune.plan.states import FP32

NEAR = (0.75, 1.33)  # of what the machine has


@dataclass(frozen=True, slots=True)
class Case:
    """A published run.

    Attributes:
        memory: bytes of one GPU.
        host: bytes of a node's memory; None where it is not printed.
        temporaries: bytes that the update allocates for a moment.
        fits: what happened.
    """

    id: str
    source: str
    setup: Setup
    gpu: str
    memory: float
    host: float | None
    temporaries: int
    fits: bool
    note: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the memory model says: shares of the GPU's and of the host's memory that the run needs."""

    gpu_share: float
    host_share: float

    @property
    def fits(self) -> bool:
        return max(self.gpu_share, self.host_share) <= 1.0

    @property
    def near(self) -> bool:
        return NEAR[0] <= max(self.gpu_share, self.host_share) <= NEAR[1]


def judge(case: Case) -> Verdict:
    """The memory model's answer for a published run."""
    needed = memory(case.setup)
    backward = needed.gpu.activations + needed.gpu.logits  # gone when the update starts
    return Verdict(
        gpu_share=(needed.gpu.total + max(0, case.temporaries - backward)) / case.memory,
        host_share=needed.host / case.host if case.host else 0.0,
    )


@lru_cache(maxsize=1)
def cases() -> tuple[Case, ...]:
    """Every run of the table."""
    text = (files(__package__) / "fits.csv").read_text(encoding="utf-8")
    return tuple(_case(record) for record in csv.DictReader(text.splitlines()))


def _case(record: dict[str, str]) -> Case:
    tokens = int(record["tokens"])
    shape = published.model_shape(record["model"], 2048)
    setup = Setup(
        shape=shape,
        sharding=_sharding(record, shape),
        batch=Batch(tokens=tokens, supervised=tokens),
        workers=int(record["gpus"]),
        dtype_bytes=2,
        checkpointing=record["checkpointing"] == "1",
        attention="flash",
        workers_per_node=int(record["workers_per_node"]),
    )
    listed = record["memory_gib"]
    return Case(
        id=record["id"],
        source=record["source"],
        setup=setup,
        gpu=record["gpu"],
        memory=float(listed) * GIB if listed else hardware.gpu(record["gpu"]).memory,
        host=float(record["host_gb"]) * 1e9 if record["host_gb"] else None,
        temporaries=_temporaries(record, setup),
        fits=record["fits"] == "yes",
        note=record["note"],
    )


def _temporaries(record: dict[str, str], setup: Setup) -> int:
    if record["adam"] == "fused" or setup.sharding.offload_optimizer != "none":
        return 0
    owner = setup.shape.layer_parameters if record["method"] == "fsdp" else setup.shape.parameters
    return 2 * FP32 * owner // setup.workers


def _sharding(record: dict[str, str], shape: ModelShape) -> Sharding:
    method, layer = record["method"], shape.layer_parameters
    if method == "fsdp":
        # a layer at work and the next one on its way; gradients leave layer by layer, the update copies nothing
        return Sharding(
            3, reduce_bucket=layer, prefetch_bucket=0, persistence_threshold=0, max_live=2 * layer, sub_group=0
        )
    bucket = shape.hidden_size**2 if record["reduce_bucket"] == "hidden" else int(record["reduce_bucket"])
    return Sharding(
        stage=int(method.removeprefix("zero")[0]),
        offload_optimizer="cpu" if "offload" in method else "none",
        offload_param="cpu" if method.endswith("all") else "none",
        overlap_comm=record["overlap"] == "1",
        reduce_bucket=bucket,
        prefetch_bucket=bucket,
    )
