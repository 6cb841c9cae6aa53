"""Runs a task's scorer over (record, completion) pairs: in this process, and in several when that takes long.

The engine room of score. Workers are spawned, not forked (the caller may hold threads of Ray or torch), so they find
the task by name; pairs are taken as they are needed, a few chunks ahead; and results come back in order, so nothing
downstream can tell how many processes there were.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import tasks
from tasks.base import Completion, Record, Task, UserError

log = logging.getLogger(__name__)

POOL_AFTER_S = 1.5  # starting a pool costs about that much; most tasks are done before
CHUNK = 32
Pair = tuple[Record, Completion]


@dataclass(frozen=True, slots=True)
class ItemScore:
    """The score of one record: a line of scores.jsonl. Metrics that do not apply to the item are absent."""

    id: str
    metrics: Mapping[str, float]
    parsed: Any
    error: str | None
    why: str

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "metrics": dict(self.metrics),
            "parsed": self.parsed,
            "error": self.error,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """How another process finds a task: `tasks.get(name, **options)`."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Task:
        return tasks.get(self.name, **self.options)


def score_pairs(
    task: Task,
    pairs: Iterable[Pair],
    *,
    processes: int | None = None,
    spec: TaskSpec | None = None,
    pool_after_s: float | None = None,
) -> Iterator[ItemScore]:
    """Score pairs in order, in this process first and in a pool once `pool_after_s` seconds of work have passed.

    Raises:
        RuntimeError: the task's scorer raised; the message names the record.
    """
    patience_s = POOL_AFTER_S if pool_after_s is None else pool_after_s
    count = os.cpu_count() or 1 if processes is None else processes
    if count < 1:
        raise UserError(got=f"processes {count}", wanted="a whole number above 0", fix="leave it out for one per CPU")
    rest = iter(pairs)
    spent_s = 0.0
    while count == 1 or spent_s < patience_s:
        pair = next(rest, None)
        if pair is None:
            return
        started = time.perf_counter()
        item = score_pair(task, *pair)
        spent_s += time.perf_counter() - started
        yield item
    spec = spec or TaskSpec(task.name, task.options)
    if _finds(spec, task):
        yield from _in_pool(spec, rest, count)
    else:
        log.warning("task %r is not registered under its name: scoring in one process", task.name)
        yield from (score_pair(task, *pair) for pair in rest)


def score_pair(task: Task, record: Record, completion: Completion) -> ItemScore:
    """Score one completion. Metrics that are not finite numbers are left out (they do not apply to the item)."""
    try:
        verdict = task.score(record, completion)
    except Exception as error:
        raise RuntimeError(f"the scorer of task {task.name!r} failed on {record.id!r}: {error!r}") from error
    metrics = {name: float(value) for name, value in verdict.metrics.items() if _is_number(value)}
    return ItemScore(id=record.id, metrics=metrics, parsed=verdict.parsed, error=verdict.error, why=verdict.why)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _finds(spec: TaskSpec, task: Task) -> bool:
    try:
        found = spec.load()
    except UserError:
        return False
    return (found.name, found.version, found.options) == (task.name, task.version, task.options)


def _in_pool(spec: TaskSpec, pairs: Iterator[Pair], processes: int) -> Iterator[ItemScore]:
    context = multiprocessing.get_context("spawn")
    # An executor, not a multiprocessing.Pool: a killed worker raises here instead of hanging the caller.
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(spec,)) as executor:
        flying: deque[Future[list[_Scored]]] = deque()
        while chunk := [_packed(*pair) for pair in islice(pairs, CHUNK)]:
            flying.append(executor.submit(_score_chunk, chunk))
            if len(flying) > 2 * processes:
                yield from (ItemScore(*parts) for parts in flying.popleft().result())
        while flying:
            yield from (ItemScore(*parts) for parts in flying.popleft().result())


_worker_task: Task | None = None


def _start_worker(spec: TaskSpec) -> None:
    global _worker_task
    _worker_task = spec.load()


# Pairs and scores cross processes as plain tuples: frozen dataclasses with slots take ten times as long to pickle.
_Packed = tuple[str, Mapping[str, Any], str, str | None]
_Scored = tuple[str, Mapping[str, float], Any, str | None, str]


def _packed(record: Record, completion: Completion) -> _Packed:
    return record.id, record.fields, completion.text, completion.finish_reason


def _score_chunk(chunk: list[_Packed]) -> list[_Scored]:
    assert _worker_task is not None, "the pool's initializer did not run"
    pairs = ((Record(name, fields), Completion(text, reason)) for name, fields, text, reason in chunk)
    items = (score_pair(_worker_task, *pair) for pair in pairs)
    return [(item.id, item.metrics, item.parsed, item.error, item.why) for item in items]
