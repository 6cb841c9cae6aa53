"""`fulltune probe`: a base model's few-shot curve and what it recognises, before anybody pays for training.

predict with k = 0, 1, 2, 4, 8 shots -> score      likelihood of the right and of another answer -> evaluation.probe
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

import tasks
from evaluation.leaks import question_of, words_of
from evaluation.predictions import read_predictions
from evaluation.probe import Choice, Verdict, judge
from evaluation.score import score
from fulltune import device, engines
from ray_jobs import cluster, predict
from ray_jobs.predict import Request
from tasks.base import Record, Task
from tasks.sources import load

SHOTS = (0, 1, 2, 4, 8)
PAIR_SEED = 23  # which other record's answer stands against the right one
DRAWN = 200  # answers that are looked through for one that copying would prefer


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found, and where its files are."""

    verdict: Verdict
    out: Path


def probe(base: Request, out: Path, *, shots: Sequence[int] = SHOTS, say: Callable[[str], None]) -> Probe:
    """Runs the curve; a killed probe goes on where it was.

    Args:
        base: the request without shots; its `out` and `label` are set here.
        out: folder for the predictions and probe.json.

    Raises:
        UserError: the engine is not installed.
    """
    engines.check(base.engine)
    task = tasks.get(base.task, **dict(base.task_options))
    records = load(task, base.split, base.source, columns=dict(base.columns) or None, limit=base.limit)
    curve = []
    with cluster.connected():
        for k in shots:
            label = f"{k}-shot"
            file = predict.predict(dataclasses.replace(base, shots=k, label=label, out=out / f"{label}.jsonl"), say=say)
            curve.append((k, score(task, records, read_predictions(file))))
        choices = _choices(base, task, records, out) if base.prompt == "natural" else None
    verdict = judge(task, curve, choices)
    (out / "probe.json").write_text(json.dumps(verdict.as_json(), indent=1))
    return Probe(verdict, out)


def _choices(base: Request, task: Task, records: Sequence[Record], out: Path) -> list[Choice]:
    """Per record, its own answer against another record's."""
    others = others_of(task, records)
    folder = predict.model_folder(dataclasses.replace(base, out=out / "recognition"))
    resources = {"num_cpus": base.cpus_per_worker, "num_gpus": 1.0 if base.use_gpu else 0.0}
    environment = {"env_vars": device.worker_environment(use_gpu=base.use_gpu)}
    remote: Any = ray.remote(recognise).options(runtime_env=environment, max_retries=2, **resources)
    right: list[bool] = ray.get(remote.remote(base, folder, [r for r, _ in others], [o.answer for _, o in others]))
    return [Choice(found, other.copying) for found, (_, other) in zip(right, others, strict=True)]


@dataclass(frozen=True, slots=True)
class Other:
    """An answer that is not the record's own; `copying` as in `evaluation.probe.Choice`."""

    answer: str
    copying: bool


def others_of(task: Task, records: Sequence[Record]) -> list[tuple[Record, Other]]:
    """Each record with another record's answer, drawn by seed from at most `DRAWN`; records without one are left out.

    Of those drawn, one that has at least as large a share of words out of the question as the own answer is taken where
    there is one: a model that prefers what it can copy gains nothing then.
    """
    answers = list(dict.fromkeys(task.reference(record) for record in records))
    choose = random.Random(PAIR_SEED)
    found = []
    for record in records:
        own, question = task.reference(record), set(words_of(question_of(task, record)))
        drawn = choose.sample(answers, min(len(answers), DRAWN))
        rest = [answer for answer in drawn if answer != own]
        wanted = _copied(own, question)
        fair = next((answer for answer in rest if _copied(answer, question) >= wanted), None)
        if rest:
            found.append((record, Other(rest[0] if fair is None else fair, copying=fair is None)))
    return found


def _copied(answer: str, question: set[str]) -> float:
    """Share of the answer's words that stand in the question."""
    words = words_of(answer)
    return sum(word in question for word in words) / len(words) if words else 0.0


def recognise(request: Request, folder: Path, records: list[Record], others: list[str]) -> list[bool]:
    """The Ray task: compares the mean log-likelihood per token of two answers to the same prompt."""
    from fulltune import generate

    task = tasks.get(request.task, **dict(request.task_options))
    generator = generate.load(folder, task, prompt_style="natural", use_gpu=request.use_gpu)
    return [
        generator.log_likelihood(record, task.reference(record)) > generator.log_likelihood(record, other)
        for record, other in zip(records, others, strict=True)
    ]
