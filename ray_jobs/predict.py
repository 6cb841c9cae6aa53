"""`fulltune predict`: answers of one model to one split, written as they come; a killed one goes on where it was.

    records -> Ray actors (each with a whole model and a share of them) -> predictions.jsonl + .meta.json

An actor writes the answers of a step into its journal beside the output (`evaluation.answer_journal`) before it begins
the next step, and sends those of a moment together. What an actor has finished is never computed again: neither after a
kill of this process nor after the death of the actor, whose journal is read then. On a node that does not see the
output's folder there is no journal; answers are then sent with every step, and those on their way can be lost.

The same schema serves our model, a base model with k shots and an API model, so `score` and `compare` ask no questions.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import ray
from tqdm import tqdm

import tasks
from evaluation import answer_journal, jsonl, prediction_file
from fulltune import device, engines, model
from fulltune.config import ModelConfig, PromptStyle
from tasks.base import Record, Task, UserError
from tasks.shots import pick
from tasks.sources import load

if TYPE_CHECKING:
    from fulltune.generate import Answer

RESTARTS = 2  # of each actor
WAKE_S = 5.0  # how long the driver waits for answers before it looks at the clock
MOMENT_S = 0.2  # how long an actor with a journal gathers answers: sending each step's would slow a tiny model down


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be predicted, and with what.

    Attributes:
        task: name or path of the task; `task_options` its settings.
        model: a folder or hub id.
        prompt: None for the natural one where the model is not tuned on the task, else the structured one.
        max_new_tokens: of an answer; None for the task's own limit.
        engine: one of `fulltune.engines`.
        batch_tokens: of the keys and values that a worker holds at once, answers included.
        workers: actors, each holding a whole model.
        cache: where converted models are kept; None for a folder beside `out`.
        role: which row of a report it is; None leaves that to the report, which goes by the words of the label.
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
    max_new_tokens: int | None = None
    revision: str | None = None
    task_options: tuple[tuple[str, Any], ...] = ()
    columns: tuple[tuple[str, str], ...] = ()
    engine: engines.EngineName = "hf"
    batch_tokens: int = 16384
    workers: int = 1
    cpus_per_worker: float = 1.0
    use_gpu: bool = False
    role: Literal["base", "tuned", "other"] | None = None
    cache: Path | None = None
    replace: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers; predictions made under another identity are not continued."""
        wanted = ("task", "split", "source", "model", "revision", "prompt", "shots", "max_new_tokens")
        options = ("task_options", "columns")
        return {name: getattr(self, name) for name in wanted + options} | {"engine": engines.family(self.engine)}


def predict(request: Request, *, say: Callable[[str], None]) -> Path:
    """Predicts what is missing in `request.out` and returns the file, in the order of the records.

    Raises:
        UserError: the file holds predictions of another model, prompt or data set.
    """
    from ray_jobs import cluster

    engines.check(request.engine)
    task = tasks.get(request.task, **dict(request.task_options))
    records = load(task, request.split, request.source, columns=dict(request.columns) or None, limit=request.limit)
    shots = pick_shots(task, request)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    folder = model_folder(request)
    done = _continue(request, task, folder)
    missing = [record for record in records if record.id not in done]
    if missing:
        say(f"{request.label}: {len(missing)} prompts" + (f" ({len(done)} answered before)" if done else ""))
        with cluster.connected():
            _run(request, folder, missing, shots)
    prediction_file.finish(request.out, [record.id for record in records])
    answer_journal.clear(request.out)
    return request.out


def pick_shots(task: Task, request: Request) -> list[Record]:
    """Worked examples from the training split, chosen by seed; none that the split to predict contains as well.

    They avoid the whole of another split, whatever `limit` is: the same for every row of a report, APIs included.
    """
    if not request.shots:
        return []
    columns = dict(request.columns) or None
    limit = request.limit if request.split == "train" else None
    train = load(task, "train", request.source, columns=columns)
    return pick(task, request.shots, train, load(task, request.split, request.source, columns=columns, limit=limit))


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
    """Ids already answered, those in the journals of a killed run included.

    Predictions of another identity are refused, or make room where the request says so.
    """
    weights = max((file.stat().st_mtime_ns for file in folder.glob("*.safetensors")), default=0)
    identity = json.loads(
        json.dumps(request.identity | {"task_version": task.version, "weights": weights}, default=str)
    )
    before = prediction_file.read_meta(request.out)
    if request.replace and prediction_file.differing(before, identity):
        request.out.unlink(missing_ok=True)
        before = {}
    done = set(prediction_file.answered(request.out, identity))
    answer_journal.begin(request.out)
    if request.out.exists():  # a file that the user has deleted stays deleted
        left = [row for row in answer_journal.take_all(request.out) if row["id"] not in done]
        with request.out.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            _append(file, left)
        done |= {row["id"] for row in left}
    answer_journal.clear(request.out, keep_token=True)
    names = ("label", "task", "split", "source", "shots", "prompt", "model", "engine")
    facts = {name: getattr(request, name) for name in names}
    facts |= {"role": request.role} if request.role else {}
    facts |= {"max_new_tokens": request.max_new_tokens or task.max_new_tokens}
    spent = {"seconds": before.get("seconds", 0.0), "workers": before.get("workers", request.workers)}
    spent |= {"batching": before["batching"]} if "batching" in before else {}
    prediction_file.write_meta(request.out, facts | spent | {"identity": identity})
    return done


def _append(file: IO[str], rows: Sequence[dict[str, Any]]) -> None:
    file.write("".join(f"{jsonl.dump(row)}\n" for row in rows))
    file.flush()


def _run(request: Request, folder: Path, missing: Sequence[Record], shots: Sequence[Record]) -> None:
    started = time.perf_counter()
    before = prediction_file.read_meta(request.out)
    pool = _Pool(request, folder, list(shots))

    def facts(seconds: float) -> dict[str, Any]:
        found = {"batching": pool.batching} if pool.batching else {}
        return before | found | _spent(before, seconds, pool.workers)

    keep_time = prediction_file.timekeeper(request.out, facts)  # for a kill, which no `finally` sees
    try:
        with (
            request.out.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
            tqdm(total=len(missing), unit="answer", disable=not sys.stderr.isatty(), leave=False) as bar,
        ):
            for rows in pool.answers(missing):
                _append(file, rows)
                bar.update(len(rows))
                keep_time()
    finally:
        pool.close()
        prediction_file.write_meta(request.out, facts(time.perf_counter() - started))


def _spent(before: dict[str, Any], seconds: float, workers: int) -> dict[str, float]:
    """Seconds of all runs on this file, and workers so that the product is their working time together."""
    total = before["seconds"] + seconds
    if not before["seconds"] or before["workers"] == workers:
        return {"seconds": round(total, 2), "workers": workers}
    mean = (before["seconds"] * before["workers"] + seconds * workers) / total
    return {"seconds": round(total, 2), "workers": round(mean, 3)}


@dataclass(slots=True)
class _Share:
    """The records of one actor, less those that it has answered, and where its journal is."""

    actor: Any
    open: dict[str, Record]
    journal: answer_journal.Place

    def fresh(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of the rows that have not come before; they are no longer open."""
        return [row for row in rows if self.open.pop(row["id"], None) is not None]


@dataclass(slots=True)
class _Pool:
    """Actors with a share of the records each; one that dies is replaced, and goes on where the dead one was."""

    request: Request
    folder: Path
    shots: list[Record]
    workers: int = 0
    batching: str = ""
    shares: dict[Any, _Share] = field(default_factory=dict)  # by the stream of its answers
    lives: int = 0

    def answers(self, missing: Sequence[Record]) -> Iterator[list[dict[str, Any]]]:
        """Lines of the predictions file, as the actors finish them; none every few seconds in which none come."""
        self.workers = min(self.request.workers, self._room(), len(missing))
        self.lives = RESTARTS * self.workers
        actors = [self._actor() for _ in range(self.workers)]
        self.batching = ray.get(actors[0].batching.remote())
        for number, actor in enumerate(actors):
            self._start(actor, missing[number :: self.workers])
        while self.shares:
            ready, _ = ray.wait(list(self.shares), num_returns=1, timeout=WAKE_S, fetch_local=True)
            if not ready:
                yield []
                continue
            stream: Any = ready[0]  # a stream of references, which `ray.wait` is typed to return as a reference
            share = self.shares[stream]
            try:
                yield share.fresh(ray.get(next(stream)))
            except StopIteration:
                ray.kill(self.shares.pop(stream).actor)
            except ray.exceptions.RayActorError:
                del self.shares[stream]
                yield share.fresh(answer_journal.take(share.journal.path))
                self._replace(share)

    def close(self) -> None:
        """Ends the actors that are left."""
        for share in self.shares.values():
            ray.kill(share.actor)
        self.shares.clear()

    def _start(self, actor: Any, records: Sequence[Record]) -> None:
        # an actor outlives a killed driver by seconds: it goes on only when its last answers have been taken
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}
        journal = answer_journal.place(self.request.out)
        stream = actor.answers.options(**options).remote(list(records), self.shots, journal)
        self.shares[stream] = _Share(actor, {record.id: record for record in records}, journal)

    def _replace(self, share: _Share) -> None:
        if not self.lives:
            raise RuntimeError(f"{self.request.label}: predicting actors died {RESTARTS * self.workers + 1} times")
        self.lives -= 1
        if share.open:
            self._start(self._actor(), list(share.open.values()))

    def _actor(self) -> Any:
        environment = {"env_vars": device.worker_environment(use_gpu=self.request.use_gpu)}
        # a death is ours to answer: Ray would repeat the whole share
        options = {"runtime_env": environment, "max_restarts": 0, "max_task_retries": 0}
        remote: Any = ray.remote(Predictor)
        return remote.options(**options, **self._resources()).remote(self.request, self.folder)

    def _resources(self) -> dict[str, float]:
        return {"num_cpus": self.request.cpus_per_worker, "num_gpus": 1.0 if self.request.use_gpu else 0.0}

    def _room(self) -> int:
        from ray_jobs import cluster

        room = cluster.places({"CPU": self.request.cpus_per_worker} | ({"GPU": 1.0} if self.request.use_gpu else {}))
        if not room:
            raise UserError(
                got=f"a cluster without room for one copy of the model ({self._resources()})",
                wanted="a node with that much",
                fix="lower ray.cpus_per_worker, or join a larger cluster through RAY_ADDRESS",
            )
        return room


class Predictor:
    """A Ray actor that holds one whole model."""

    def __init__(self, request: Request, folder: Path) -> None:
        self._request = request
        self._task = tasks.get(request.task, **dict(request.task_options))
        self._engine = engines.load(
            request.engine, folder, self._task, prompt_style=request.prompt, use_gpu=request.use_gpu
        )

    def batching(self) -> str:
        """How the engine batches."""
        return self._engine.batching

    def answers(
        self, records: list[Record], shots: list[Record], place: answer_journal.Place
    ) -> Iterator[list[dict[str, Any]]]:
        """Lines of the predictions file: journalled with the step that finishes them, sent by the moment."""
        prompts = [self._engine.prompt(record, shots) for record in records]
        limit = self._request.max_new_tokens or self._task.max_new_tokens
        limits = {"max_new_tokens": limit, "batch_tokens": self._request.batch_tokens}
        journal = answer_journal.open_here(place)
        try:
            finished: list[dict[str, Any]] = []
            sent = time.monotonic()
            for answers in self._engine.answers(prompts, **limits):
                rows = [self._row(answer) for answer in answers]
                if journal is not None:
                    journal.write(rows)
                finished += rows
                if journal is None or time.monotonic() - sent >= MOMENT_S:
                    yield finished
                    finished, sent = [], time.monotonic()
            if finished:
                yield finished
        finally:
            if journal is not None:
                journal.close()

    def _row(self, answer: Answer) -> dict[str, Any]:
        found = asdict(answer)
        head = {"id": answer.id, "completion": found.pop("text"), "model": self._request.label}
        return head | found | {"task_version": self._task.version}
