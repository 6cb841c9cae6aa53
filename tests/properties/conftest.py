"""A tiny prepared task and a launcher of real worker processes (gloo, DeepSpeed, no Ray) for the property tests."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import tasks
from benchmarks import ranks
from benchmarks.tiny import MODEL
from fulltune import batches, config, data, device, model, setup
from fulltune import tokenizer as tok
from tasks.sources import load

BOUND_S = 800  # a launch takes a minute or two on a quiet machine with 2 cores
RANKS = Path(__file__).with_name("ranks.py")
ROOT = Path(__file__).resolve().parents[2]

# global_batch_size 10 over 2 workers: at least 3 examples of unequal length per pack, unequal supervised tokens
BASE: dict[str, Any] = {
    "task": "viggo",
    "model": MODEL,
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
        environment = device.worker_environment(use_gpu=False)
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": setup.tool_path()}
        return ranks.run([sys.executable, str(RANKS), case, text], workers, environment, results, timeout_s=BOUND_S)

    return start


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
    # what moves is moved by its gradient: weight decay would move whatever has none
    "-one-step": {"steps": 1, "train__weight_decay": 0.0},
    "-bf16-one-step": {"model__dtype": "bfloat16", "steps": 1, "train__weight_decay": 0.0},
    "-checkpointed": {"train__gradient_checkpointing": True, "steps": 3},
    "-bf16": {"model__dtype": "bfloat16", "steps": 3},
}


@pytest.fixture(scope="session")
def matrix(tiny: Tiny, launch: Launch) -> Matrix:
    """ZeRO 0-3 with 1 and 2 workers in every variant: 52 runs in three processes."""
    runs: dict[int, dict[str, Any]] = {1: {}, 2: {}}
    for workers, stage, (variant, changes) in product((1, 2), STAGES, VARIANTS.items()):
        if stage or "bf16" not in variant:  # bf16 without ZeRO goes through a wrapper that the product does not use
            runs[workers][f"zero{stage}-{workers}w{variant}"] = changes | {"deepspeed": f"zero{stage}"}
    return run_all(tiny, launch, runs, "matrix")


# the runs that are compared step by step; four parameter groups, as weight decay is for matrices only
GROUPS: dict[str, Any] = {
    "train__learning_rate": 1e-3,
    "train__lr_multipliers": {"*embed_tokens*": 2.0, "*lm_head*": 0.5},
    "train__max_grad_norm": 0.2,  # below every norm that occurs, so that clipping is part of each step
    "train__loss_chunk_tokens": 50,
    "steps": 4,
}


def cells(tiny: Tiny, workers: int) -> dict[str, dict[str, Any]]:
    """Accumulation {1, 4} x packing {on, off}, offloaded optimizers, a dummy, and a step that is skipped."""
    sixteen = {"train__global_batch_size": 16}
    four_packs = sixteen | {"train__micro_batch_tokens": _capacity_of_four_packs(tiny, workers)}
    steady = {"train__lr_scheduler": "constant", "train__warmup_steps": 0}
    skipped = steady | {"poison": 2, "train__on_nonfinite": "skip"}
    without = steady | {"plan": [1, 3, 4], "steps": 3}
    found = {
        "-packed-1": sixteen,
        "-packed-4": four_packs,
        "-all-logits": sixteen | {"train__loss_chunk_tokens": 0},
        "-single-1": {"train__global_batch_size": workers, "data__packing": False},
        "-single-4": {"train__global_batch_size": 4 * workers, "data__packing": False},
        "-dummy": {"train__global_batch_size": 2 * workers - 1, "data__packing": False},
        "-offload-1": sixteen,
        "-offload-4": four_packs,
    }
    for arm in ("-bf16", "-offload-bf16"):
        found[f"{arm}-4"] = four_packs | {"model__dtype": "bfloat16"}
    for arm, change in {"": {}, "-bf16": {"model__dtype": "bfloat16"}, "-offload": {}}.items():
        found |= {f"-skipped{arm}": skipped | change, f"-without{arm}": without | change}
    return {name: GROUPS | changes for name, changes in found.items()}


def _capacity_of_four_packs(tiny: Tiny, workers: int) -> int:
    """The smallest `micro_batch_tokens` with which each of four steps of 16 examples takes four packs per worker."""
    table = data.TokenTable(tiny.tokens)
    for tokens in range(50, 1000, 5):
        settings = {"global_batch_size": 16, "micro_batch_tokens": tokens}
        run = config.resolve(tiny.base | {"train": tiny.base["train"] | settings}, origin="test")
        planner = batches.StepPlanner(table, run.train, packing=True, num_workers=workers)
        if all(len(planner.step(number).micro_batches) == 4 for number in (1, 2, 3, 4)):
            return tokens
    raise AssertionError(f"no capacity gives {workers} workers four packs in each step")


def zero(stage: int, cell: str) -> dict[str, Any]:
    """DeepSpeed's settings for a cell: no small parameter may stay gathered; offloaded states meet DeepSpeedCPUAdam."""
    settings: dict[str, Any] = {"stage": stage}
    if stage == 3:
        settings["stage3_param_persistence_threshold"] = 0
    if "offload" in cell:
        settings["offload_optimizer"] = {"device": "cpu"}
    return {"zero_optimization": settings}


@pytest.fixture(scope="session")
def parity(tiny: Tiny, launch: Launch) -> Matrix:
    """ZeRO 0-3 with 1 and 2 workers in every cell: a hundred short runs in three processes."""
    runs: dict[int, dict[str, Any]] = {1: {}, 2: {}}
    for workers, stage in product((1, 2), STAGES):
        for cell, changes in cells(tiny, workers).items():
            if stage or not ("bf16" in cell or "offload" in cell):
                runs[workers][f"zero{stage}-{workers}w{cell}"] = changes | {"deepspeed": zero(stage, cell)}
    return run_all(tiny, launch, runs, "parity")


@pytest.fixture(scope="session")
def mutate(tiny: Tiny, launch: Launch) -> Callable[[dict[str, tuple[int, str]]], Matrix]:
    """mutate({mutation: (stage, cell)}): two workers take the steps of that cell with that bug (`mutations.py`)."""

    def run(bugs: dict[str, tuple[int, str]]) -> Matrix:
        runs = {
            bug: cells(tiny, 2)[cell] | {"deepspeed": zero(stage, cell), "mutation": bug}
            for bug, (stage, cell) in bugs.items()
        }
        return run_all(tiny, launch, {2: runs}, "mutated", agree=False)

    return run


def run_all(tiny: Tiny, launch: Launch, runs: dict[int, dict[str, Any]], name: str, *, agree: bool = True) -> Matrix:
    """Launches each number of workers once, for all of its runs; all workers must have seen the same unless told."""
    records: dict[str, list[dict[str, float]]] = {}
    folders: dict[str, Path] = {}
    for workers, named in runs.items():
        out = tiny.out / f"{name}-{workers}"
        common = {"base": tiny.base, "model": tiny.model, "tokens": tiny.tokens, "steps": STEPS}
        found = launch("matrix", workers, **common, out=out, runs=named)
        if agree:
            assert all(found[0][run] == other[run] for other in found for run in named), "workers saw other losses"
        records |= found[0]
        folders |= {run: out / run for run in named}
    return Matrix(records, folders)


@dataclass(frozen=True)
class Curve:
    """What plain PyTorch makes of a run: one process, one example at a time, transformers' own attention and loss."""

    losses: Any
    norms: Any
    weights: dict[str, Any]


@pytest.fixture(scope="session")
def plain(tiny: Tiny) -> Callable[..., Curve]:
    """plain(steps, **changes): the reference for a run with these changes; each is computed once."""
    known: dict[str, Curve] = {}

    def curve(steps: int, **changes: Any) -> Curve:
        tree = copy.deepcopy(tiny.base)
        tree["train"] |= {key.removeprefix("train__"): value for key, value in changes.items()}
        run = config.resolve(tree, origin="test")
        key = f"{steps} {run.train}"
        if key not in known:
            known[key] = _train_plainly(tiny, run, steps)
        return known[key]

    return curve


def _train_plainly(tiny: Tiny, run: config.RunConfig, steps: int) -> Curve:
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    from fulltune.engine.core import parameter_groups
    from fulltune.train import learning_rate

    model = AutoModelForCausalLM.from_pretrained(tiny.model, dtype=torch.float32, attn_implementation="eager")
    groups = parameter_groups(model.named_parameters(), run.train)
    optimizer = torch.optim.AdamW(groups, lr=1.0, eps=run.train.adam_epsilon)
    table = data.TokenTable(tiny.tokens)
    planner = batches.StepPlanner(table, run.train, packing=True)
    losses, norms = [], []
    for number in range(1, steps + 1):
        examples = [table[i] for i in planner.step(number).example_indices]
        count = sum(int((e.labels[1:] != -100).sum()) for e in examples)
        loss = 0.0
        for example in examples:
            logits = model(input_ids=torch.tensor(example.input_ids.astype(np.int64))[None]).logits[0]  # (T, V)
            targets = torch.tensor(example.labels[1:].astype(np.int64))
            part = cross_entropy(logits[:-1], targets, ignore_index=-100, reduction="sum") / count
            part.backward()
            loss += float(part.detach())
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), run.train.max_grad_norm)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.train, number, steps) * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
    return Curve(np.array(losses), np.array(norms), {name: p.detach() for name, p in model.named_parameters()})


@pytest.fixture(scope="session")
def follows() -> Callable[..., None]:
    """follows(matrix, name, curve, tolerance): that run took the curve's steps; the check of the parity matrix."""

    def check(matrix: Matrix, name: str, curve: Curve, tolerance: float) -> None:
        losses = [record["loss"] for record in matrix.records[name]]
        assert losses == pytest.approx(list(curve.losses), rel=1e-5)
        for parameter, value in matrix.weights(name).items():
            wanted = curve.weights[parameter]
            apart = float((value - wanted).norm() / wanted.norm())
            assert apart <= tolerance, f"{name}: {parameter} is {apart:.1e} of its norm away"

    return check
