"""Published throughput of full-parameter training, as data: what the planner's arithmetic and speed are held against.

`published.csv` has one line per published figure, with its source; nothing in it is measured here. Rows that print both
tokens/s and TFLOP/s or MFU check the FLOP accounting; the bf16, data-parallel ones fit and test the throughput model.

The halves are decided by a hash of the row's id, within each pair of GPU and interconnect and each day on which rows
were collected, before anything is fitted: rows that come later leave the halves of the earlier ones as they were.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import files
from typing import Any, get_type_hints

from fulltune.plan.flops import StepFlops, head_weights, linear_weights, step_flops
from fulltune.plan.shape import ModelShape
from fulltune.plan.shape import of as shape_of

DATA_PARALLEL = ("dp", "fsdp", "hsdp", "zero3")
LINKS = ("nvlink", "rdma-400", "rdma-800", "rdma-1600", "rdma-3200")  # Gbit/s between nodes of eight GPUs
UNKNOWN_PEAK = ("H100-96-500W",)
# "selective" checkpoints every second layer, "selective-op" recomputes every second matrix product
RECOMPUTED = {"none": 0.0, "selective": 0.5, "selective-op": 0.5, "full": 1.0}


@dataclass(frozen=True, slots=True)
class Row:
    """A published figure.

    Attributes:
        interconnect: nvlink within one node, or rdma-<Gbit/s per node> between nodes.
        tokens_per_s: per GPU, padding included.
        mfu: percent, as printed.
        tflops: model TFLOP/s per GPU, as printed.
        flops_convention: how the source counts FLOPs, see `printed_flops`.
        memory_gib: peak per GPU, as printed.
        reduce_dtype: in which FSDP sums gradients across workers; empty where the source does not tell.
        backward_prefetch: "post" if FSDP fetches a layer's weights only once the layer above has its gradients.
        collected: the day on which the row was added, before any fit with it.
    """

    id: str
    source: str
    model: str
    gpu: str
    gpus: int
    interconnect: str
    parallelism: str
    method: str
    dtype: str
    checkpointing: str
    sequence_length: int
    micro_batch: int
    accumulation: int | None
    tokens_per_s: float
    mfu: float | None
    tflops: float | None
    flops_convention: str
    memory_gib: float | None
    reduce_dtype: str
    backward_prefetch: str
    note: str
    collected: str

    @property
    def pair(self) -> tuple[str, str]:
        """What has an efficiency constant of its own."""
        return self.gpu, self.interconnect


@lru_cache(maxsize=1)
def rows() -> tuple[Row, ...]:
    """Every row of the table."""
    text = (files(__package__) / "published.csv").read_text(encoding="utf-8")
    return tuple(_row(record) for record in csv.DictReader(text.splitlines()))


def _row(record: dict[str, str]) -> Row:
    hints = get_type_hints(Row)
    values: dict[str, Any] = {field.name: _value(record[field.name], hints[field.name]) for field in fields(Row)}
    return Row(**values)


def _value(text: str, kind: object) -> str | int | float | None:
    if kind is str:
        return text
    if kind is int:
        return int(text)
    if kind is float:
        return float(text)
    if not text:
        return None
    return int(text) if kind == int | None else float(text)


_MPT = {"1b": (24, 2048), "3b": (32, 2560), "7b": (32, 4096), "13b": (40, 5120), "30b": (48, 7168), "70b": (80, 8192)}


def _mpt(layers: int, hidden: int, positions: int) -> ModelShape:
    """MosaicML's GPT: an MLP of 4 x hidden without a gate, biases everywhere, learned positions, tied embeddings."""
    in_layer = [("qkv", 3, 1), ("out", 1, 1), ("up", 4, 1), ("down", 1, 4)]
    layer = [(name, (rows * hidden, columns * hidden)) for name, rows, columns in in_layer] + [("rest", (13 * hidden,))]
    return ModelShape(
        model_type="mpt",
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_heads=hidden // 128,
        num_kv_heads=hidden // 128,
        head_dim=128,
        vocab_size=50368,
        tie_embeddings=True,
        tensors=(
            ("wte.weight", (50368, hidden)),
            ("wpe.weight", (positions, hidden)),
            *((f"model.layers.{i}.{name}", size) for i in range(layers) for name, size in layer),
            ("norm_f", (2 * hidden,)),
        ),
        gated_mlp=False,
    )


def _llama(hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, vocabulary: int) -> ModelShape:
    return shape_of(
        {
            "model_type": "llama",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "intermediate_size": intermediate,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocabulary,
        }
    )


_LLAMA = {
    "llama2-7b": (4096, 32, 11008, 32, 32, 32000),
    "llama2-13b": (5120, 40, 13824, 40, 40, 32000),
    "llama2-70b": (8192, 80, 28672, 64, 8, 32000),
    "llama3-8b": (4096, 32, 14336, 32, 8, 128256),
    "llama3-70b": (8192, 80, 28672, 64, 8, 128256),
    "codellama-34b": (8192, 48, 22016, 64, 8, 32000),
    "yi-34b": (7168, 60, 20480, 56, 8, 64000),
    "llama-33b": (6656, 60, 17920, 52, 52, 32000),
    "baichuan2-13b": (5120, 40, 13696, 40, 40, 125696),
    "qwen1.5-7b": (4096, 32, 11008, 32, 32, 151936),
    "kempner-13b": (5120, 40, 17920, 40, 8, 128256),
}


def model_shape(name: str, sequence_length: int) -> ModelShape:
    """The shape behind a model's name in the table; MPT learns as many positions as its sequences are long."""
    if name.startswith("mpt-"):
        return _mpt(*_MPT[name.removeprefix("mpt-")], sequence_length)
    return _llama(*_LLAMA[name])


def flops(row: Row, *, sequences: int = 1) -> StepFlops:
    """Our count for some sequences of the row, logits at every position, recomputation as the row says."""
    shape = model_shape(row.model, row.sequence_length)
    lengths = [row.sequence_length] * sequences
    return step_flops(shape, lengths, recomputed_layers=RECOMPUTED.get(row.checkpointing, 0.0))


def printed_flops(row: Row) -> float:
    """Model FLOPs of one sequence under the convention of the row's source, built from our own parts.

    "matrix-products" is ours; "all-parameters" charges six operations for every parameter, looked-up embeddings too;
    "no-attention" leaves the products of queries and keys out (short packed examples); "causal" counts half of them.
    """
    ours = flops(row)
    if row.flops_convention == "no-attention":
        return ours.model - ours.attention
    if row.flops_convention == "causal":
        return ours.model - ours.attention / 2
    if row.flops_convention == "all-parameters":
        shape = model_shape(row.model, row.sequence_length)
        looked_up = shape.parameters - linear_weights(shape) - head_weights(shape)
        return ours.model + 6.0 * looked_up * row.sequence_length
    return ours.model


def excluded(row: Row) -> str | None:
    """Why a row takes no part in the throughput fit; None if it does."""
    if row.dtype != "bf16":
        return {"fp8": "fp8", "bf16-pure": "optimizer states in bf16 or 8 bits"}.get(row.dtype, "precision not printed")
    if "offload" in row.parallelism:
        return "offloads to the host"
    if row.parallelism not in DATA_PARALLEL:
        return "tensor, pipeline or sequence parallelism"
    if row.gpu in UNKNOWN_PEAK:
        return "power-limited GPU whose peak is not printed"
    if row.interconnect not in LINKS:
        return "one GPU, no interconnect" if row.gpus == 1 else "rate between nodes not printed"
    return None


def fitting_rows() -> list[Row]:
    """The rows that decide the efficiency constants: in each group the half, rounded up, with the smaller hashes."""
    return [row for group in _groups() for row in group[: (len(group) + 1) // 2]]


def test_rows() -> list[Row]:
    """The other half."""
    return [row for group in _groups() for row in group[(len(group) + 1) // 2 :]]


def _groups() -> Sequence[list[Row]]:
    """Rows of one GPU and interconnect that were collected on one day, by the hash of their id."""
    included = [row for row in rows() if excluded(row) is None]
    groups = sorted({(row.pair, row.collected) for row in included})
    return [sorted((row for row in included if (row.pair, row.collected) == group), key=_hash) for group in groups]


def _hash(row: Row) -> str:
    return hashlib.sha256(row.id.encode()).hexdigest()
