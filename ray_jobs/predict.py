"""`fulltune predict`: answers of one model to one split, written as they come; a killed one goes on where it was.

    records -> prompts -> batches -> Ray actors (each with a whole model) -> predictions.jsonl + .meta.json

The same schema serves our model, a base model with k shots and an API model, so `score` and `compare` ask no questions.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from tqdm import tqdm

import tasks
from evaluation import prediction_file
from fulltune import device, model
from fulltune.config import ModelConfig, PromptStyle
from tasks.base import Record, Task, UserError
from tasks.shots import pick
from tasks.sources import load


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be predicted, and with what.

    Attributes:
        task: name or path of the task; `task_options` its settings.
        model: a folder or hub id.
        prompt: None for the natural one where the model is not tuned on the task, else the structured one.
        batch_tokens: of one generation batch, padding and answers included.
        workers: actors, each holding a whole model.
        cache: where converted models are kept; None for a folder beside `out`.
        replace: predictions of another model or setting in `out` make room; otherwise they are refused.
    """

    task: str
    split: str
    source: str
    model: str
    out: Path
    label: str
    prompt: PromptStyle
    shots: int = 0
    limit: int | None = None
    revision: str | None = None
    task_options: tuple[tuple[str, Any], ...] = ()
    columns: tuple[tuple[str, str], ...] = ()
    batch_tokens: int = 4096
    workers: int = 1
    cpus_per_worker: float = 1.0
    use_gpu: bool = False
    role: Literal["base", "tuned", "other"] = "other"
    cache: Path | None = None
    replace: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers; predictions made under another identity are not continued."""
        wanted = ("task", "split", "source", "model", "revision", "prompt", "shots", "task_options", "columns")
        return {name: getattr(self, name) for name in wanted}


def predict(request: Request, *, say: Callable[[str], None]) -> Path:
    """Predicts what is missing in `request.out` and returns the file, in the order of the records.

    Raises:
        UserError: the file holds predictions of another model, prompt or data set.
    """
    from ray_jobs import cluster

    task = tasks.get(request.task, **dict(request.task_options))
    records = load(task, request.split, request.source, columns=dict(request.columns) or None, limit=request.limit)
    shots = pick_shots(task, request, records)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    folder = model_folder(request)
    done = _continue(request, task, folder)
    missing = [record for record in records if record.id not in done]
    if missing:
        say(f"{request.label}: {len(missing)} prompts" + (f" ({len(done)} answered before)" if done else ""))
        with cluster.connected():
            _run(request, task, folder, missing, shots)
    prediction_file.finish(request.out, [record.id for record in records])
    return request.out


def pick_shots(task: Task, request: Request, records: Sequence[Record]) -> list[Record]:
    """Worked examples from the training split, chosen by seed; none that the split to predict contains as well."""
    if not request.shots:
        return []
    train = load(task, "train", request.source, columns=dict(request.columns) or None)
    return pick(task, request.shots, train, records)


def usual_prompt(name: str, special_tokens: Sequence[str]) -> PromptStyle:
    """Structured for a model whose tokenizer has the task's tokens, natural for every other."""
    from fulltune import tokenizer as tok

    folder = model.resolve_source(ModelConfig(name_or_path=name), Path.home() / ".cache" / "fulltune" / "models")
    vocabulary = tok.load(str(folder)).get_vocab()
    return "structured" if special_tokens and all(token in vocabulary for token in special_tokens) else "natural"


def model_folder(request: Request) -> Path:
    """The model as a folder that transformers reads, fetched or converted where it is not one."""
    cache = request.cache or request.out.parent / ".models"
    folder = model.resolve_source(ModelConfig(name_or_path=request.model, revision=request.revision), cache)
    assert folder is not None, "only a random initialisation has no folder"
    return folder


def _continue(request: Request, task: Task, folder: Path) -> set[str]:
    """Ids already answered; predictions of another identity are refused, or make room where the request says so."""
    weights = max((file.stat().st_mtime_ns for file in folder.glob("*.safetensors")), default=0)
    identity = json.loads(
        json.dumps(request.identity | {"task_version": task.version, "weights": weights}, default=str)
    )
    before = prediction_file.read_meta(request.out)
    if before.get("identity") != identity and request.replace:
        request.out.unlink(missing_ok=True)
        before = {}
    done = prediction_file.answered(request.out, identity)
    names = ("label", "task", "split", "source", "shots", "prompt", "model", "role")
    facts = {name: getattr(request, name) for name in names}
    prediction_file.write_meta(request.out, facts | {"seconds": before.get("seconds", 0.0), "identity": identity})
    return set(done)


def _run(request: Request, task: Task, folder: Path, missing: Sequence[Record], shots: Sequence[Record]) -> None:
    started = time.perf_counter()
    with (
        request.out.open("a", encoding="utf-8") as file,
        tqdm(total=len(missing), unit="answer", disable=not sys.stderr.isatty(), leave=False) as bar,
    ):
        for answers in _answers(request, folder, missing, shots):
            for answer in answers:
                file.write(json.dumps(_line(answer, request, task), ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(answers))
    meta = prediction_file.read_meta(request.out)
    seconds = round(meta["seconds"] + time.perf_counter() - started, 2)
    prediction_file.write_meta(request.out, meta | {"seconds": seconds})


def _line(answer: dict[str, Any], request: Request, task: Task) -> dict[str, Any]:
    line = {"id": answer["id"], "completion": answer.pop("text"), "model": request.label}
    return line | answer | {"task_version": task.version}


def _answers(
    request: Request, folder: Path, missing: Sequence[Record], shots: Sequence[Record]
) -> Iterator[list[dict[str, Any]]]:
    """Batches of answers as the actors finish them."""
    from ray_jobs import cluster

    resources = {"num_cpus": request.cpus_per_worker, "num_gpus": 1.0 if request.use_gpu else 0.0}
    room = cluster.places({"CPU": resources["num_cpus"]} | ({"GPU": 1.0} if request.use_gpu else {}))
    if not room:
        raise UserError(
            got=f"a cluster without room for one copy of the model ({resources})",
            wanted="a node with that much",
            fix="lower ray.cpus_per_worker, or join a larger cluster through RAY_ADDRESS",
        )
    environment = {"env_vars": device.worker_environment(use_gpu=request.use_gpu)}
    actor: Any = ray.remote(Predictor).options(runtime_env=environment, max_restarts=2, max_task_retries=2, **resources)
    first = actor.remote(request, folder)
    waiting = list(reversed(ray.get(first.plan.remote(list(missing), list(shots)))))
    count = min(request.workers, room, len(waiting))
    actors: list[Any] = [first, *(actor.remote(request, folder) for _ in range(count - 1))]
    running: dict[Any, Any] = {}
    for each in actors:
        running[each.answer.remote(waiting.pop(), list(shots))] = each
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        free = running.pop(ready)
        if waiting:
            running[free.answer.remote(waiting.pop(), list(shots))] = free
        yield ray.get(ready)
    for each in actors:
        ray.kill(each)


class Predictor:
    """A Ray actor that holds one whole model."""

    def __init__(self, request: Request, folder: Path) -> None:
        from fulltune import generate

        self._request = request
        self._task = tasks.get(request.task, **dict(request.task_options))
        self._generator = generate.load(folder, self._task, prompt_style=request.prompt, use_gpu=request.use_gpu)

    def plan(self, records: list[Record], shots: list[Record]) -> list[list[Record]]:
        """Batches of records with prompts of similar length."""
        from fulltune import generate

        by_id = {record.id: record for record in records}
        prompts = [self._generator.prompt(record, shots) for record in records]
        limits = {"max_new_tokens": self._task.max_new_tokens, "batch_tokens": self._request.batch_tokens}
        return [[by_id[prompt.id] for prompt in batch] for batch in generate.batches(prompts, **limits)]

    def answer(self, records: list[Record], shots: list[Record]) -> list[dict[str, Any]]:
        """The answers to one batch."""
        prompts = [self._generator.prompt(record, shots) for record in records]
        answers = self._generator.answer(prompts, max_new_tokens=self._task.max_new_tokens)
        return [asdict(answer) for answer in answers]
