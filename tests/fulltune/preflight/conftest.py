"""Workers, recipes and plans that the tests of a preflight's checks share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fulltune import config
from fulltune.plan import planner
from fulltune.plan.workload import Lengths
from fulltune.preflight.facts import Facts

GIB = 2**30
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}
LENGTHS = Lengths(np.full(1000, 100), np.array([40, 60] * 500), "test", known=True)


def _worker(rank=0, **changes):
    one = Facts(
        rank=rank,
        node="node-0",
        device="NVIDIA A10G",
        device_memory=22 * GIB,
        driver="570.86",
        versions={"python": "3.11.7", "torch": "2.13.0", "fulltune": "0.1.0+aa"},
        host_memory=64 * GIB,
        host_available=60 * GIB,
        resident=GIB,
        shm=8 * GIB,
        open_files=65536,
    )
    return replace(one, **changes)


def _recipe(packing=True, **train):
    tree = {
        "task": "viggo",
        "model": {"name_or_path": "m"},
        "data": {"max_length": 300, "packing": packing},
        "train": {"global_batch_size": 64, **train},
        "ray": {"name": "r", "num_workers": 2},
    }
    return config.resolve(tree, origin="test")


@pytest.fixture
def worker():
    """worker(rank, **changes): the facts of a GPU worker."""
    return _worker


@pytest.fixture
def recipe():
    """recipe(packing, **train): two workers, 64 examples of 100 tokens per step."""
    return _recipe


@pytest.fixture
def lengths():
    return LENGTHS


@pytest.fixture
def plan_of():
    """plan_of(recipe): its plan, on a host without limits."""
    return lambda run: planner.plan(run, ARCHITECTURE, LENGTHS, planner.Options(host_memory=2**40))
