"""Tests that need CUDA, for users who have it: `make test-gpu`. Nobody has run them on a GPU yet.

Without CUDA each of them is skipped with that reason. FULLTUNE_REHEARSE_GPU=1 runs them with CPU workers in place of
GPUs: it tests the tests.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tasks
from benchmarks import ranks
from benchmarks.tiny import MODEL
from fulltune import config, data, device, model, setup
from fulltune import tokenizer as tok
from tasks.sources import load

RANKS = Path(__file__).with_name("gpu_ranks.py")
ROOT = Path(__file__).resolve().parents[2]
REHEARSAL = os.environ.get("FULLTUNE_REHEARSE_GPU") == "1"
BOUND_S = 600

BASE: dict[str, Any] = {
    "task": "viggo",
    "model": MODEL | {"dtype": "float32"},
    "data": {"limit": 64},
    "train": {
        "learning_rate": 1e-3,
        "global_batch_size": 8,
        "micro_batch_tokens": 4096,
        "num_epochs": 50,
        "weight_decay": 0.1,
        "deterministic": True,
    },
    "deepspeed": "zero0",
    "ray": {"name": "gpu"},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks everything here; skips what this machine cannot run, with the reason."""
    found = 2 if REHEARSAL else device.gpu_count()
    for item in items:
        if Path(str(item.fspath)).parent != Path(__file__).parent:
            continue
        item.add_marker("gpu")
        item.add_marker(pytest.mark.timeout(1000))
        needed = 2 if item.get_closest_marker("two_gpus") else 1
        if found < needed:
            item.add_marker(pytest.mark.skip(reason=f"needs {needed} CUDA device(s), torch sees {found}"))


@dataclass(frozen=True)
class Prepared:
    """A prepared run: model and token table."""

    base: dict[str, Any]
    model: Path
    tokens: Path


def prepare(folder: Path, **shape: Any) -> Prepared:
    """Builds them on the CPU."""
    base = json.loads(json.dumps(BASE))
    base["model"]["config"] |= shape
    resolved = config.resolve(base, origin="test")
    task = tasks.get("viggo")
    records = load(task, "train", "bundled", limit=64)
    texts = ["".join(segment.text for segment in task.render(record)) for record in records]
    start = model.prepare(resolved.model, task, texts, seed=1, cache=folder)
    table = data.prepare(task, records, tok.load(str(start)), resolved.data, split="train", cache=folder)
    return Prepared(base=base, model=start, tokens=table.folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Two layers of width 64: heads of 16, which every attention kernel takes."""
    return prepare(tmp_path_factory.mktemp("tiny"), hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """110 million parameters: large enough that what CUDA itself takes does not decide."""
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8,
             "num_attention_heads": 16, "num_key_value_heads": 16}  # fmt: skip
    return prepare(tmp_path_factory.mktemp("wide"), **shape)


Launch = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """launch(case, workers, run, gpu=..., **arguments): the result of every rank, NCCL on GPUs and gloo on CPUs."""

    def start(case: str, workers: int, run: Prepared, *, gpu: bool = True, **arguments: Any) -> list[dict[str, Any]]:
        results = tmp_path_factory.mktemp("ranks")
        use_gpu = gpu and not REHEARSAL
        named = {"base": run.base, "model": run.model, "tokens": run.tokens, "results": results, "use_gpu": use_gpu}
        text = json.dumps(named | arguments, default=str)
        environment = device.worker_environment(use_gpu=use_gpu, cpus=2, deterministic=True)
        environment |= {"PYTHONPATH": str(ROOT), "PATH": setup.tool_path()}
        return ranks.run([sys.executable, str(RANKS), case, text], workers, environment, results, timeout_s=BOUND_S)

    return start
