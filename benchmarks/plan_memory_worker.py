"""One worker process of `benchmarks.plan_memory`: builds real engines and counts what they hold.

python -m benchmarks.plan_memory_worker TASK JSON FOLDER        (started by benchmarks.plan_memory)
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import ranks
from benchmarks.plan_memory import LENGTHS, deepspeed
from fulltune import attention, config
from fulltune.batches import MicroBatch
from fulltune.engine import Engine, build
from fulltune.loss import summed_loss


def batch(vocab: int) -> MicroBatch:
    """A packed row in which every second token is supervised."""
    total = sum(LENGTHS)
    keep = torch.arange(0, total - 1, 2)
    return MicroBatch(
        input_ids=torch.randint(0, vocab, (1, total)),
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
        cu_seq_lens=torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32),
        max_length=max(LENGTHS),
        keep=keep,
        targets=torch.randint(0, vocab, (len(keep),)),
        weight=1.0,
    )


def engine_in_a_step(model: str, stage: int, *, whole: bool) -> Engine:
    """An engine after one optimizer step and one micro-batch of the next; with `whole`, after that step too."""
    tree = {"task": "viggo", "model": {"name_or_path": model}, "deepspeed": deepspeed(stage),
            "train": {"weight_decay": 0.1, "learning_rate": 1e-4}, "ray": {"name": "plan"}}  # fmt: skip
    engine = build(config.resolve(tree, origin="benchmark"), Path(model), num_workers=dist.get_world_size())
    rows = batch(engine.module.config.vocab_size)
    for _ in range(2):
        engine.accumulate(rows, step_tokens=len(rows.keep), last=False)
        engine.accumulate(rows, step_tokens=len(rows.keep), last=True)
        engine.update(1e-4)
    if not whole:
        engine.accumulate(rows, step_tokens=len(rows.keep), last=False)
    return engine


def count_states(arguments: dict[str, Any]) -> list[dict[str, int]]:
    """Bytes per kind of state, for every [name, model, stage]."""
    found = []
    for _, model, stage in arguments["jobs"]:
        engine = engine_in_a_step(model, stage, whole=False)
        found.append(kinds(engine))
        del engine
        gc.collect()
    return found


def count_copies(arguments: dict[str, Any]) -> list[int]:
    """Bytes that this worker copies into host memory at a save, for every [name, model, stage]."""
    found = []
    for number, (_, model, stage) in enumerate(arguments["jobs"]):
        engine = engine_in_a_step(model, stage, whole=True)
        found.append(engine.snapshot(Path(arguments["folder"]) / f"save-{number}-{dist.get_rank()}").bytes)
        del engine
        gc.collect()
    return found


def kinds(engine: Engine) -> dict[str, int]:
    """Bytes of the storages behind an engine's weights, gradients, master weights and moments; each counted once."""
    seen: set[int] = set()
    wrapped: Any = engine._wrapped
    optimizer = wrapped.optimizer
    weights = list(engine.module.parameters())
    shards = [p.ds_tensor for p in weights if hasattr(p, "ds_tensor")]
    parameters = count([*weights, *shards], seen)
    states = [t for state in optimizer.state.values() for key, t in state.items() if key.startswith("exp_avg")]
    moments = count(states, seen)
    partitions = getattr(optimizer, "single_partition_of_fp32_groups", None)
    master = count(partitions or getattr(optimizer, "fp32_partitioned_groups_flat", []), seen)
    gradients = count(held_gradients(optimizer, weights), seen)
    return {"parameters": parameters, "gradients": gradients, "master": master, "moments": moments}


def held_gradients(optimizer: Any, weights: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Every tensor in which DeepSpeed or autograd keeps a gradient."""
    tensors = [p.grad for p in weights if p.grad is not None]
    for name in ("averaged_gradients", "all_grad_tensors"):
        for group in getattr(optimizer, name, {}).values():
            tensors += group or []
    flat = getattr(optimizer, "grad_partitions_flat_buffer", None)
    return tensors + ([flat] if flat is not None else [])


def count(tensors: Iterable[torch.Tensor], seen: set[int]) -> int:
    """Bytes of the storages not seen before."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def measure_peak(arguments: dict[str, Any]) -> list[list[int]]:
    """High-water marks of resident memory above the baseline, for every [name, model, stage] as often as asked.

    The baseline is what is left after a much smaller model has taken the same steps under the same stage: libraries,
    their first use, gloo's connections and threads are in it, and no tensor of this size.
    """
    found = []
    for name, model, stage in arguments["jobs"]:
        engine_in_a_step(arguments["warm"], stage, whole=True)
        marks: list[int] = []
        for _ in range(arguments["repeats"]):
            gc.collect()
            dist.barrier()
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here (proc(5))
            baseline = status("VmRSS")
            engine = engine_in_a_step(model, stage, whole=True)
            marks.append(status("VmHWM") - baseline)
            del engine
        print(f"{name} ZeRO-{stage}: {marks}", flush=True)
        found.append(marks)
    return found


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def measure_saved(arguments: dict[str, Any]) -> list[int]:
    """Bytes of the storages that autograd saved in one forward pass, for every [config, dtype, checkpointing]."""
    return [saved(*job) for job in arguments["jobs"]]


def saved(shape: dict[str, Any], dtype: str, checkpointing: bool) -> int:
    """As above, for one model; its weights do not count."""
    from transformers import LlamaConfig, LlamaForCausalLM

    attention.register()
    model = LlamaForCausalLM._from_config(
        LlamaConfig(**shape), attn_implementation=attention.SEGMENTS, dtype=getattr(torch, dtype)
    ).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)  # alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = summed_loss(model, batch(shape["vocab_size"]))
    total = count(kept, seen)
    loss.backward()
    return total


def main() -> None:
    """Runs one task on this rank and writes `<rank>.json`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task, arguments, folder = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    ranks.serve(lambda _: globals()[task](arguments), folder)


if __name__ == "__main__":
    main()
