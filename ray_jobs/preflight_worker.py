"""What a worker does in a preflight: look at itself, the storage and the network, then take a worst-case step.

Ray Train starts it as it would start the training's worker. What it finds goes to the driver stage by stage, through an
actor, so that a worker that dies takes nothing with it but the stage it was in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulltune.comm import Workers
    from fulltune.config import RunConfig
    from fulltune.preflight.facts import Facts

NAMESPACE = "fulltune"
TELL_S = 120  # for the actor to take a finding


@dataclass(frozen=True, slots=True)
class Findings:
    """What the workers told so far.

    Attributes:
        told: stage -> worker -> what it found.
        doing: worker -> the stage it entered last.
    """

    told: dict[str, dict[int, Any]] = field(default_factory=dict)
    doing: dict[int, str] = field(default_factory=dict)


class Ledger:
    """The actor that keeps the findings."""

    def __init__(self) -> None:
        self._findings = Findings()

    def enter(self, rank: int, stage: str) -> None:
        """The worker begins a stage."""
        self._findings.doing[rank] = stage

    def tell(self, rank: int, stage: str, value: Any) -> None:
        """The worker found something."""
        self._findings.told.setdefault(stage, {})[rank] = value

    def read(self) -> Findings:
        """All so far."""
        return self._findings


def preflight_worker(payload: dict[str, Any]) -> None:
    """One worker's part.

    Args:
        payload: `config`, `run` and `model` (a folder; None: no step) as for training; `ledger`, the actor's name;
            `mark` and `probe_bytes` for the storage; `size` and `sizes` (`fulltune.preflight.micro_batch.Size`), the
            micro-batch to try and what may be chosen; `floor`, `host_limit` and `timeout_s`.
    """
    import ray
    import ray.train

    from fulltune import comm
    from fulltune.config import resolve
    from fulltune.preflight.step import is_out_of_memory

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    context = ray.train.get_context()
    workers = comm.Workers(rank=context.get_world_rank(), size=context.get_world_size())
    ledger: Any = ray.get_actor(payload["ledger"], namespace=NAMESPACE)

    def enter(stage: str) -> None:
        ray.get(ledger.enter.remote(workers.rank, stage), timeout=TELL_S)

    def tell(stage: str, value: Any) -> None:
        ray.get(ledger.tell.remote(workers.rank, stage, value), timeout=TELL_S)

    config = resolve(payload["config"], origin="the resolved configuration")
    try:
        _look(config, payload, workers, enter, tell)
    except Exception as error:
        tell("error", {"text": _first_line(error), "out_of_memory": is_out_of_memory(error)})
        raise


def _look(
    config: RunConfig,
    payload: dict[str, Any],
    workers: Workers,
    enter: Callable[[str], None],
    tell: Callable[[str, Any], None],
) -> None:
    import torch

    from fulltune import device
    from fulltune.preflight import access, facts, network, storage
    from ray_jobs.worker import attach

    use_gpu = config.ray.use_gpu
    enter("looking at itself")
    attach(config)
    mine = facts.collect(workers.rank, use_gpu=use_gpu)
    tell("facts", mine)
    enter("writing and reading the storage")
    tell("storage", storage.probe(Path(payload["run"]), payload["mark"], workers.rank, payload["probe_bytes"]))
    tell("object store", access.check_object_store(config))
    enter("the collectives")
    target = device.current_gpu() if use_gpu else torch.device("cpu")
    tell("network", network.measure(workers, target))
    if payload["model"] is not None:
        _step(config, payload, workers, workers.gather(mine), enter, tell)


def _step(
    config: RunConfig,
    payload: dict[str, Any],
    workers: Workers,
    everybody: list[Facts],
    enter: Callable[[str], None],
    tell: Callable[[str, Any], None],
) -> None:
    """The recipe's micro-batch, and then the larger one that would save passes, if by that measurement it fits."""
    from fulltune import session
    from fulltune.engine import build  # before the baseline: libraries are not what the plan counts
    from fulltune.preflight import memory, micro_batch, step

    if (why := memory.hopeless(everybody, payload["floor"], payload["host_limit"])) is not None:
        tell("error", {"text": why, "out_of_memory": True})
        return
    enter("loading the model")
    watch = memory.start(on_gpu=config.ray.use_gpu)
    session.seed_everything(config.train.seed)
    built = build(config, Path(payload["model"]), num_workers=workers.size)
    workers.bound(payload["timeout_s"])
    size, longest, vocab = payload["size"], config.data.max_length, built.module.config.vocab_size
    enter(f"a worst-case step of {size.tokens:,} tokens")
    measured = step.take(built, step.worst_batch(size.batch, longest, vocab), config, workers, watch)
    tell("step", measured)
    peak = micro_batch.Peak(size.planned, max(workers.gather(measured.use.device)))
    room = memory.capacity(everybody, payload["host_limit"])
    larger = micro_batch.choose(payload["sizes"], room, peak)
    if larger is None or larger.tokens <= size.tokens or not micro_batch.saves(larger.passes, size.passes):
        return
    enter(f"a worst-case step of {larger.tokens:,} tokens")
    again = step.take(built, step.worst_batch(larger.batch, longest, vocab), config, workers, watch)
    tell("larger step", (larger.tokens, again))


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
