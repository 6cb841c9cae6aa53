"""A tiny prepared task and a launcher of real worker processes (gloo, DeepSpeed, no Ray) for the property tests."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tasks
from fulltune import config, data, device, model
from fulltune import tokenizer as tok
from tasks.sources import load

BOUND_S = 800  # a launch takes a minute or two on a quiet machine with 2 cores
RANKS = Path(__file__).with_name("ranks.py")
ROOT = Path(__file__).resolve().parents[2]

# global_batch_size 10 over 2 workers: at least 3 examples of unequal length per pack, unequal supervised tokens
BASE: dict[str, Any] = {
    "task": "viggo",
    "model": {
        "init": "random",
        "config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
        },
        "tokenizer": {"vocab_size": 400},
    },
    "data": {"limit": 64},
    "train": {
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "lr_scheduler": "linear",
        "num_epochs": 50,
        "global_batch_size": 10,
        "micro_batch_tokens": 4096,
        "max_grad_norm": 1.0,
        "weight_decay": 0.1,
    },
    "deepspeed": "zero0",
    "ray": {"name": "tiny"},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a session fixture pays for all runs of its launch."""
    for item in items:
        if Path(str(item.fspath)).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(1000))


@dataclass(frozen=True)
class Tiny:
    """A prepared tiny run."""

    base: dict[str, Any]
    model: Path
    tokens: Path
    out: Path

    @property
    def tokenizer(self) -> Any:
        return tok.load(str(self.model))


def prepare(folder: Path, **model_changes: Any) -> Tiny:
    """Builds model and token table of the tiny run."""
    base = copy.deepcopy(BASE)
    base["model"]["config"] |= model_changes
    resolved = config.resolve(base, origin="test")
    task = tasks.get("viggo")
    records = load(task, "train", "bundled", limit=64)
    texts = ["".join(s.text for s in task.render(r)) for r in records]
    start = model.prepare(resolved.model, task, texts, seed=1, cache=folder)
    table = data.prepare(task, records, tok.load(str(start)), resolved.data, split="train", cache=folder)
    return Tiny(base=base, model=start, tokens=table.folder, out=folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_tied(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return prepare(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


Launch = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """launch(case, workers, **arguments): the result of every rank; a rank that fails or hangs fails the test."""

    def start(case: str, workers: int, **arguments: Any) -> list[dict[str, Any]]:
        results = tmp_path_factory.mktemp("ranks")
        text = json.dumps(arguments | {"results": str(results)}, default=str)
        common = os.environ | device.worker_environment(use_gpu=False)
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(workers)}
        common |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                [sys.executable, str(RANKS), case, text],
                env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=(results / f"{rank}.log").open("w"),
                stderr=subprocess.STDOUT,
            )
            for rank in range(workers)
        ]
        try:
            codes = [rank.wait(timeout=BOUND_S) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        logs = "\n".join((results / f"{rank}.log").read_text()[-3000:] for rank in range(workers))
        assert codes == [0] * workers, logs
        return [json.loads((results / f"{rank}.json").read_text()) for rank in range(workers)]

    return start


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass(frozen=True)
class Matrix:
    """What the runs of all stages and numbers of workers left behind, by name `zero<stage>-<workers>w[-variant]`."""

    records: dict[str, list[dict[str, float]]]
    folders: dict[str, Path]

    def weights(self, name: str) -> dict[str, Any]:
        import torch

        whole: dict[str, Any] = torch.load(self.folders[name] / "whole.pt", weights_only=True)
        return whole


STAGES = (0, 1, 2, 3)
STEPS = 20
# packed into one micro-batch; split into several (accumulation); one example per micro-batch (no packing)
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "-accumulated": {"train__micro_batch_tokens": 130, "steps": 5},
    "-unpacked": {"data__packing": False, "steps": 5},
    "-one-step": {"steps": 1},
    "-checkpointed": {"train__gradient_checkpointing": True, "steps": 3},
    "-bf16": {"model__dtype": "bfloat16", "steps": 3},
}


@pytest.fixture(scope="session")
def matrix(tiny: Tiny, launch: Launch) -> Matrix:
    """ZeRO 0-3 with 1 and 2 workers in every variant: 40 runs in three processes."""
    records: dict[str, list[dict[str, float]]] = {}
    folders: dict[str, Path] = {}
    for workers in (1, 2):
        runs: dict[str, dict[str, Any]] = {}
        for stage in STAGES:
            for variant, changes in VARIANTS.items():
                if variant == "-bf16" and stage == 0:
                    continue  # DeepSpeed offers bf16 without ZeRO through another wrapper that the product does not use
                runs[f"zero{stage}-{workers}w{variant}"] = changes | {"deepspeed": f"zero{stage}"}
        out = tiny.out / f"matrix-{workers}"
        found = launch(
            "matrix", workers, base=tiny.base, model=tiny.model, tokens=tiny.tokens, out=out, runs=runs, steps=STEPS
        )
        assert all(found[0][name] == other[name] for other in found for name in runs), "workers disagree on the records"
        records |= found[0]
        folders |= {name: out / name for name in runs}
    return Matrix(records, folders)
