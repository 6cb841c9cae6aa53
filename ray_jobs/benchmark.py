"""`fulltune benchmark RECIPE`: models and endpoints x tasks -> predictions -> scores -> a report per task.

    name: small_models                                   <out>/<name>/<task>/predictions/*.jsonl
    tasks:                                               <out>/<name>/<task>/report/report.html
      - {task: viggo, source: hub, limit: 200}           <out>/<name>/index.md, benchmark.json
      - {task: gsm8k, source: hub, limit: 200, max_new_tokens: 256}
    models:
      - {label: base, model: HuggingFaceTB/SmolLM2-135M, shots: 5}
      - {label: gpt-4, model: "openai:gpt-4", shots: 5}
      - {label: tuned, model: {viggo: runs/viggo, gsm8k: runs/gsm8k}}

Every part is resumed by running the command again: answered prompts stay, paid answers come from the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

import tasks
from evaluation import chat, jsonl, predict_api, prediction_file, prices, runs
from evaluation.compare import compare
from evaluation.comparison import Entry, LeakCheck
from evaluation.ledger import Budget
from evaluation.pool import TaskSpec
from fulltune import engines, provenance
from fulltune.config import PromptStyle
from fulltune.schema import Section, checked, read_tree
from ray_jobs import cluster, trained_on
from ray_jobs.predict import Request, predict, usual_prompt
from ray_jobs.readers import ReaderModel, readers
from tasks.base import Record, Task, UserError
from tasks.sources import load


class BenchmarkTask(Section):
    """What is asked: a split of a task's records."""

    task: str = Field(description="a task's name, or path/to/file.py:TASK")
    options: dict[str, Any] = Field(default_factory=dict)
    source: str = Field("bundled", description="bundled, hub, or a path")
    columns: dict[str, str] = Field(default_factory=dict)
    split: Literal["train", "valid", "test"] = "test"
    limit: int | None = Field(None, ge=1, description="the first N rows by index")
    max_new_tokens: int | None = Field(None, ge=1, description="of an answer; default: the task's own limit")


class BenchmarkModel(Section):
    """A row of every report: a folder, a hub id or openai:NAME, and how it is asked."""

    label: str
    model: str | dict[str, str] = Field(
        description="folder, run folder with an export, hub id, or openai:NAME; or one of these per task it answers"
    )
    role: Literal["base", "tuned", "other"] | None = Field(None, description="default: words of the label decide")
    revision: str | None = None
    shots: int = Field(0, ge=0)
    prompt: PromptStyle | None = Field(None, description="default: structured if the model knows the task's tokens")
    tasks: tuple[str, ...] = Field((), description="names of the tasks it answers; default: all")
    base_url: str | None = Field(None, description="of an OpenAI-compatible API, up to /v1")
    omit: tuple[str, ...] = Field((), description="parameters that the endpoint does not take")
    budget_usd: float | None = Field(None, ge=0, description="per task")
    max_requests: int | None = Field(None, ge=0, description="per task")
    max_new_tokens: int | None = Field(
        None, ge=1, description="of an answer, thinking included, in place of the task's: for models that think first"
    )
    concurrency: int = Field(4, ge=1)
    timeout_s: float = Field(120.0, gt=0, description="of one request, from sending to the last byte")
    api_key_env: str = "OPENAI_API_KEY"

    @model_validator(mode="after")
    def _says_once_what_it_answers(self) -> BenchmarkModel:
        if self.tasks and isinstance(self.model, dict):
            raise ValueError(f"{self.label}: model already names the tasks ({', '.join(self.model)}); leave tasks out")
        return self

    @property
    def answers(self) -> tuple[str, ...]:
        """Names of the tasks it answers; none means all."""
        return tuple(self.model) if isinstance(self.model, dict) else self.tasks

    def source(self, task: str) -> str:
        """What answers this task."""
        return self.model[task] if isinstance(self.model, dict) else self.model


class Benchmark(Section):
    """A benchmark, completely described."""

    name: str = ""
    tasks: tuple[BenchmarkTask, ...] = Field(min_length=1)
    models: tuple[BenchmarkModel, ...] = Field(min_length=1)
    out: str = Field("benchmarks_runs", description="folder that gets a folder of the benchmark's name")
    engine: engines.EngineName = Field("hf", description="what generates for local models")
    batch_tokens: int = Field(16384, ge=8, description="tokens a copy of a model holds at once, answers included")
    workers: int = Field(1, ge=1, description="copies of each local model")
    cpus_per_worker: float = Field(1.0, gt=0)
    use_gpu: bool = False
    prices: str | None = Field(None, description="YAML or JSON file of prices that win over the built-in table")
    usd_per_worker_hour: float | None = Field(None, ge=0, description="price of a worker, for the cost of own answers")
    extractor: ReaderModel | None = Field(None, description="finds final answers, where a task declares how")
    judge: ReaderModel | None = Field(None, description="grades answers, where a task declares a rubric")

    @model_validator(mode="after")
    def _names_are_told_apart(self) -> Benchmark:
        for what, names in (("label", [m.label for m in self.models]), ("task", [t.task for t in self.tasks])):
            if len(set(names)) < len(names):
                raise ValueError(f"a {what} stands twice: {names}")
        strange = {name for model in self.models for name in model.answers} - {task.task for task in self.tasks}
        if strange:
            raise ValueError(f"models name tasks that are not in the benchmark: {sorted(strange)}")
        return self

    @property
    def price_file(self) -> Path | None:
        """Prices of the user's own."""
        return Path(self.prices) if self.prices else None

    @property
    def folder(self) -> Path:
        """`<out>/<name>`, absolute."""
        return Path(self.out).expanduser().absolute() / self.name


def read(path: Path, overrides: Sequence[str] = ()) -> Benchmark:
    """The benchmark of a YAML file; UserError for every problem in it."""
    tree = read_tree(path, overrides)
    tree.setdefault("name", path.stem)
    return checked(tree, Benchmark, str(path))


def run(benchmark: Benchmark, *, say: Callable[[str], None], arguments: Sequence[str] = ()) -> Path:
    """Runs what is missing and returns the folder."""
    facts = provenance.collect(data={}, arguments=list(arguments)) | {"benchmark": benchmark.model_dump(mode="json")}
    results: dict[str, Any] = {}
    with cluster.connected():
        for part in benchmark.tasks:
            say(f"{part.task}: {part.split} split of {part.source}")
            results[part.task] = _one_task(benchmark, part, facts, say)
    _write_index(benchmark, results)
    return benchmark.folder


def _one_task(
    benchmark: Benchmark, part: BenchmarkTask, facts: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    spec = TaskSpec(part.task, part.options)
    task = spec.load()
    records = load(task, part.split, part.source, columns=part.columns or None)
    folder = benchmark.folder / task.name
    entries = [
        _entry(_Question(benchmark, part, task, model, folder / "predictions" / f"{model.label}.jsonl", say))
        for model in benchmark.models
        if not model.answers or part.task in model.answers
    ]
    leaks, checked = _leaks(benchmark, part, task, records[: part.limit], say)
    models = {"extractor": benchmark.extractor, "judge": benchmark.judge}
    with readers(models, task, benchmark.folder / ".api", benchmark.price_file) as found:
        return compare(
            entries,
            task=task,
            records=records,
            out=folder / "report",
            title=f"{benchmark.name}: {task.name}",
            provenance=dict(facts) | {"data": {part.split: _described(part, records[: part.limit])}},
            source=part.source,
            split=part.split,
            limit=part.limit,
            leaks=leaks,
            checked=checked,
            usd_per_worker_hour=benchmark.usd_per_worker_hour,
            readers=found,
            processes=os.cpu_count(),
            spec=spec,
        )


def _described(part: BenchmarkTask, records: Sequence[Record]) -> dict[str, Any]:
    """Which records were asked, to the last byte."""
    content = jsonl.dump([[record.id, dict(record.fields)] for record in records])
    digest = hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()
    return {"source": part.source, "rows": len(records), "sha256": digest}


def _leaks(
    benchmark: Benchmark, part: BenchmarkTask, task: Task, records: Sequence[Record], say: Callable[[str], None]
) -> tuple[dict[str, str], LeakCheck]:
    """Records whose question stands in what the rows were trained on; and what that is."""
    if part.split == "train":
        return {}, LeakCheck()
    asked = [model for model in benchmark.models if not model.answers or part.task in model.answers]
    rows = [trained_on.Row(m.label, Path(m.source(part.task)).expanduser(), m.role == "tuned") for m in asked]
    look = trained_on.Look(say)

    def whole() -> trained_on.Part:
        return "train", task, load(task, "train", part.source, columns=part.columns or None)

    return look.leaks(task, records, trained_on.rows_parts(rows, whole, look))


@dataclass(frozen=True, slots=True)
class _Question:
    """One model asked one task."""

    benchmark: Benchmark
    part: BenchmarkTask
    task: Task
    model: BenchmarkModel
    out: Path
    say: Callable[[str], None]

    @property
    def source(self) -> str:
        """What answers: a folder, a hub id, or openai:NAME."""
        return self.model.source(self.part.task)


def _entry(asked: _Question) -> Entry:
    """The predictions of one model, made or completed now."""
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    model = asked.model
    made: dict[str, Any] = {}
    if asked.source.startswith(chat.PREFIX):
        _ask_api(asked)
    else:
        predict(_request(asked), say=asked.say)
        made = runs.training_facts(Path(asked.source).expanduser())
    meta = prediction_file.read_meta(asked.out)
    note = f"{model.shots} shots, {meta.get('prompt', 'natural')} prompt"
    return Entry(model.label, asked.out, note=note, details=made | meta)


def _request(asked: _Question) -> Request:
    """For a model of ours; a run folder stands for its export."""
    benchmark, part, model = asked.benchmark, asked.part, asked.model
    folder = Path(asked.source).expanduser() / "export"
    source = str(folder) if folder.is_dir() else asked.source
    return Request(
        task=part.task,
        split=part.split,
        source=part.source,
        model=source,
        out=asked.out,
        label=model.label,
        prompt=model.prompt or usual_prompt(source, asked.task.special_tokens),
        shots=model.shots,
        limit=part.limit,
        max_new_tokens=model.max_new_tokens or part.max_new_tokens,
        revision=model.revision,
        task_options=tuple(part.options.items()),
        columns=tuple(part.columns.items()),
        engine=benchmark.engine,
        batch_tokens=benchmark.batch_tokens,
        workers=benchmark.workers,
        cpus_per_worker=benchmark.cpus_per_worker,
        use_gpu=benchmark.use_gpu,
        role=model.role,
        cache=benchmark.folder / ".models",
    )


def _ask_api(asked: _Question) -> None:
    """What stays unanswered (budget, a server that is down) is said, and counts as empty in the report."""
    benchmark, part, model = asked.benchmark, asked.part, asked.model
    if model.prompt not in (None, "natural"):
        raise UserError(
            got=f"model {model.label!r} with prompt {model.prompt}",
            wanted="natural: a chat endpoint puts its own template around the prompt",
            fix="leave prompt out",
        )
    limit = model.max_new_tokens or part.max_new_tokens or asked.task.max_new_tokens
    money = None if model.budget_usd is None else prices.picodollars(model.budget_usd)
    request = predict_api.ApiRequest(
        task=replace(asked.task, max_new_tokens=limit),
        split=part.split,
        source=part.source,
        endpoint=chat.endpoint(
            asked.source, model.base_url, key_variable=model.api_key_env, omit=model.omit, timeout_s=model.timeout_s
        ),
        out=asked.out,
        label=model.label,
        shots=model.shots,
        limit=part.limit,
        columns=part.columns,
        role=model.role,
        budget=Budget(money, model.max_requests),
        cache=benchmark.folder / ".api",
        concurrency=model.concurrency,
        price_file=benchmark.price_file,
    )
    outcome = predict_api.predict(request, say=asked.say)
    for warning in outcome.warnings:
        asked.say(f"{model.label}: {warning}")
    if not outcome.complete:
        why = outcome.stopped or dict(outcome.unanswered)
        asked.say(f"{model.label}: {outcome.missing} prompts are not answered ({why}); they count as empty")


def _write_index(benchmark: Benchmark, results: Mapping[str, Any]) -> None:
    """benchmark.json with every result, and index.md that leads to the reports."""
    (benchmark.folder / "benchmark.json").write_text(json.dumps(results, indent=1))
    lines = [f"# {benchmark.name}", ""]
    for part in benchmark.tasks:
        name = tasks.get(part.task, **part.options).name
        lines += [f"## [{name}]({name}/report/report.html)", "", results[part.task]["headline"], ""]
    (benchmark.folder / "index.md").write_text("\n".join(lines), encoding="utf-8")
