"""Bytes that the workers exchange per optimizer step: counted by wrapping torch.distributed, beside the plan's.

    python -m benchmarks.collective_bytes [--workers 2] [--hpz] [--json]

Trains a tiny Llama on CPU workers over gloo under ZeRO 0 to 3, with one and with several micro-batches per step, and
counts the payload of every collective of one step: bytes of the whole tensor, before any algorithm splits it. Sums of
single numbers (loss, gradient norm, overflow flags) are counted too; the plan leaves them out.

`--hpz` counts ZeRO++ hpZ instead, each variant in processes of its own (DeepSpeed makes its groups once): four workers
as two nodes of two, gathers inside a node apart from those across.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import ranks

# name -> ZeRO file or settings, tokens of a micro-batch, dtype
SEVERAL = 150  # tokens of a micro-batch that split the step into several
FAR = {
    "stage": 3,
    "stage3_param_persistence_threshold": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"ZeRO-{stage}": {"deepspeed": f"zero{stage}"} for stage in (0, 1, 2, 3)},
    **{f"ZeRO-{stage}, accumulated": {"deepspeed": f"zero{stage}", "tokens": SEVERAL} for stage in (0, 1, 2, 3)},
    **{f"ZeRO-{stage}, bf16": {"deepspeed": f"zero{stage}", "dtype": "bfloat16"} for stage in (1, 2, 3)},
    "ZeRO-3, gathered twice": {"deepspeed": {"zero_optimization": FAR}, "tokens": SEVERAL},
}
HPZ_WORKERS, HPZ_NODE = 4, 2
HPZ: dict[str, dict[str, Any]] = {
    "hpZ": {"deepspeed": {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": HPZ_NODE}}},
    "hpZ, accumulated": {
        "deepspeed": {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": HPZ_NODE}},
        "tokens": SEVERAL // 2,
    },
    "hpZ, gathered twice": {"deepspeed": {"zero_optimization": FAR | {"zero_hpz_partition_size": HPZ_NODE}}},
    "hpZ, gathered twice, accumulated": {
        "deepspeed": {"zero_optimization": FAR | {"zero_hpz_partition_size": HPZ_NODE}},
        "tokens": SEVERAL // 2,
    },
}
BOUND_S = 1000
BASE: dict[str, Any] = {
    "task": "viggo",
    "model": {
        "init": "random",
        "config": {
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
        },
        "tokenizer": {"vocab_size": 1024},
    },
    "data": {"limit": 64},
    "train": {"global_batch_size": 16, "max_steps": 3, "num_epochs": 50},
    "ray": {"name": "counted"},
}
# tensor argument that holds the whole payload, by function of torch.distributed
PAYLOAD = {
    "all_reduce": ("all_reduce", 0),
    "reduce": ("reduce", 0),
    "broadcast": ("broadcast", 0),
    "all_gather_into_tensor": ("all_gather", 0),
    "all_gather": ("all_gather", 0),
    "reduce_scatter_tensor": ("reduce_scatter", 1),
    "reduce_scatter": ("reduce_scatter", 1),
    "all_to_all_single": ("all_to_all", 0),
}


class Counted:
    """Counts the payload bytes of collectives while `step` names something to count for."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()

    @contextmanager
    def wrapping(self) -> Iterator[None]:
        """Replaces the functions of torch.distributed; enter it before DeepSpeed is imported."""
        import torch.distributed as dist

        originals = {name: getattr(dist, name) for name in PAYLOAD}
        for name, original in originals.items():
            setattr(dist, name, self._counting(name, original))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(dist, name, original)

    def _counting(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        import torch.distributed as dist

        kind, position = PAYLOAD[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            payload = args[position] if len(args) > position else list(kwargs.values())[position]
            tensors = payload if isinstance(payload, list) else [payload]
            group = kwargs.get("group")
            near = "node_" if group is not None and dist.get_world_size(group) < dist.get_world_size() else ""
            self.bytes[near + kind] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            return original(*args, **kwargs)

        return call


def rank(folder: Path, variants: dict[str, dict[str, Any]]) -> None:
    """One worker: every variant; it writes what it counted in the last step of each."""
    import torch

    torch.set_num_threads(1)
    counted = Counted()
    with counted.wrapping():  # before anything imports DeepSpeed
        ranks.serve(
            lambda workers: {name: _count(folder, variant, workers, counted) for name, variant in variants.items()},
            folder,
        )


def _count(folder: Path, variant: dict[str, Any], workers: Any, counted: Counted) -> dict[str, Any]:
    """Payload bytes by collective of the last of three steps, and what the plan says about it."""
    from fulltune import batches, config, data, session
    from fulltune.engine import build
    from fulltune.train import Schedule, StepDone, fit

    tree = json.loads((folder / "base.json").read_text())
    tree["train"]["micro_batch_tokens"] = variant.get("tokens", 4096)
    tree["model"]["dtype"] = variant.get("dtype", "float32")
    run = config.resolve(tree | {"deepspeed": variant["deepspeed"]}, origin="benchmark")
    session.seed_everything(run.train.seed)
    table = data.TokenTable(Path((folder / "tokens").read_text()))
    planner = batches.StepPlanner(table, run.train, run.data.packing, workers.rank, workers.size)
    engine = build(run, Path((folder / "model").read_text()), num_workers=workers.size)
    schedule = Schedule(total_steps=3, save_every=None, validate_every=None)
    found: dict[str, int] = {}
    for event in fit(engine, planner.step, lambda i: batches.collate(table, i), run.train, schedule, workers=workers):
        if isinstance(event, StepDone):
            found = dict(counted.bytes)
            counted.bytes.clear()
    micro_batches = len(planner.step(3).micro_batches)
    return {"micro_batches": micro_batches, "counted": found, "planned": planned(run, engine, workers, micro_batches)}


def planned(run: Any, engine: Any, workers: Any, micro_batches: int) -> dict[str, int]:
    """The same from the plan's closed form."""
    from fulltune.engine import settings
    from fulltune.plan import collectives, shape, sharding

    traffic = collectives.step_traffic(
        shape.of(engine.module.config.to_dict()),
        sharding.read(settings.base(run)),
        workers=workers.size,
        micro_batches=micro_batches,
        dtype_bytes=2 if run.model.dtype == "bfloat16" else 4,
    )
    return {name: value for name, value in asdict(traffic).items() if value}


def prepare(folder: Path) -> None:
    """Writes the run's base, its model and its tokens, and leaves their places in `folder`."""
    import tasks
    from fulltune import config, data, model
    from fulltune import tokenizer as tok
    from tasks.sources import load

    run = config.resolve(BASE, origin="benchmark")
    task = tasks.get("viggo")
    records = load(task, "train", "bundled", limit=run.data.limit)
    texts = ["".join(segment.text for segment in task.render(record)) for record in records]
    start = model.prepare(run.model, task, texts, seed=1, cache=folder)
    table = data.prepare(task, records, tok.load(str(start)), run.data, split="train", cache=folder)
    (folder / "base.json").write_text(json.dumps(BASE))
    (folder / "model").write_text(str(start))
    (folder / "tokens").write_text(str(table.folder))


def count(workers: int, *, hpz: bool = False) -> dict[str, Any]:
    """What a step of each stage and variant sends, counted by worker 0."""
    launches = [[name] for name in HPZ] if hpz else [[*VARIANTS]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        found: dict[str, Any] = {}
        for names in launches:
            found |= _launch(folder, workers, names)
        return found


def _launch(folder: Path, workers: int, names: list[str]) -> dict[str, Any]:
    from fulltune import device

    command = [sys.executable, "-m", "benchmarks.collective_bytes", "--folder", str(folder), "--variants", *names]
    environment = device.worker_environment(use_gpu=False) | {"OMP_NUM_THREADS": "1"}
    found: dict[str, Any] = ranks.run(command, workers, environment, folder, timeout_s=BOUND_S)[0]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--hpz", action="store_true", help="ZeRO++ hpZ on four workers")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--variants", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        known = VARIANTS | HPZ
        rank(arguments.folder, {name: known[name] for name in arguments.variants})
        return
    found = count(HPZ_WORKERS if arguments.hpz else arguments.workers, hpz=arguments.hpz)
    print(json.dumps(found, indent=1) if arguments.json else table(found))


def table(found: dict[str, Any]) -> str:
    """Counted and planned bytes per step as Markdown."""
    lines = [
        "| configuration | micro-batches | counted bytes | planned bytes | difference | of these inside a node |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        counted, plan = sum(row["counted"].values()), sum(row["planned"].values())
        inside = [row[kind].get("node_all_gather", 0) for kind in ("counted", "planned")]
        near = "{:,} and {:,}".format(*inside) if any(inside) else ""
        lines.append(
            f"| {name} | {row['micro_batches']} | {counted:,} | {plan:,} | {plan / counted - 1:+.3%} | {near} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
