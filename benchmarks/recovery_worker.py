"""Ray Train's default path, for `benchmarks.recovery_time`: DeepSpeed's own checkpoints, reported to Ray.

As Ray's guide has it: every worker writes its shard into a temporary folder and reports it, Ray Train persists it, and
a restarted function asks `ray.train.get_checkpoint`. Writes `<attempt> <step>` into `<folder>/steps` after each step.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS, SAVE_EVERY, BATCH, LENGTH = 5_000, 5, 12, 100


def main(folder: str) -> None:
    """Trains on two workers until it is ended."""
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    from benchmarks.recovery_time import RECIPE
    from benchmarks.recovery_worker import work  # by reference: functions of `__main__` are pickled by value
    from fulltune import device
    from ray_jobs import cluster

    run_config: Any = ray.train.RunConfig  # Ray declares the old class where the new one is exported
    with cluster.connected():
        TorchTrainer(
            work,
            train_loop_config={"folder": folder, "model": RECIPE["model"]},
            scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
            run_config=run_config(
                name="default",
                storage_path=folder,
                failure_config=ray.train.FailureConfig(max_failures=20),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                worker_runtime_env={"env_vars": device.worker_environment(use_gpu=False)},
            ),
        ).fit()


def work(config: dict[str, Any]) -> None:
    """One worker: build, load what was reported last, train."""
    import deepspeed
    import ray.train
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fulltune.engine import prebuild

    prebuild.attach()  # or DeepSpeed compiles its communication op for a minute
    rank, folder = ray.train.get_context().get_world_rank(), Path(config["folder"])
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    torch.manual_seed(0)
    vocabulary = config["model"]["tokenizer"]["vocab_size"]
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **config["model"]["config"]))
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=_settings())
    attempt, done = _attempt(folder, rank), 0
    reported = ray.train.get_checkpoint()
    if reported is not None:
        with reported.as_directory() as loaded:
            _, client = engine.load_checkpoint(loaded)
            done = int(client["step"])
    for step in range(done + 1, STEPS + 1):
        tokens = torch.randint(vocabulary, (BATCH, LENGTH))  # (B, T)
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
        if rank == 0:
            with (folder / "steps").open("a") as file:
                file.write(f"{attempt} {step}\n")
        if step % SAVE_EVERY == 0:
            _report(engine, step)


def _report(engine: Any, step: int) -> None:
    import ray.train

    with tempfile.TemporaryDirectory() as saved:
        engine.save_checkpoint(saved, client_state={"step": step})
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(saved))


def _attempt(folder: Path, rank: int) -> int:
    if rank:
        return 0
    with (folder / "attempts").open("a") as file:
        file.write("x")
    return (folder / "attempts").stat().st_size


def _settings() -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": BATCH,
        "zero_optimization": {"stage": 2},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }


if __name__ == "__main__":
    main(sys.argv[1])
