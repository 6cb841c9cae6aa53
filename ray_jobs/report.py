"""What follows a training run whose recipe has a `report:` key: export, predict with every model, score, compare.

checkpoint -> export -> predictions of base, tuned and API models -> report -> the export's model card
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evaluation import prediction_file, runs
from evaluation.compare import compare
from evaluation.comparison import Entry, LeakCheck
from fulltune import config, lineage, metrics
from fulltune.config import ReportModel, RunConfig
from ray_jobs import benchmark, trained_on
from ray_jobs.export import REPORT, export_run, identity, write_card
from ray_jobs.predict import Request, predict
from ray_jobs.prepare import task_of
from tasks.base import Record, Task
from tasks.sources import load

API_KEYS = {"base_url", "omit", "budget_usd", "max_requests", "concurrency", "timeout_s", "api_key_env"}


def report(run: RunConfig, checkpoint: Path, *, say: Callable[[str], None]) -> Path:
    """Predicts, scores and compares, and writes the export's card with the figures; returns the folder of the report.

    The base is the model the run started from: for a randomly initialised one, that initialisation.
    """
    assert run.report is not None, "called for recipes with a report"
    task = task_of(run)
    tuned = export_run(run, checkpoint, run.run_dir / lineage.EXPORT)
    records = load(task, run.report.split, run.data.source, columns=run.data.columns or None)
    provenance = json.loads((run.run_dir / "provenance.json").read_text())
    about = {"checkpoint": checkpoint.name, "checkpoint_digest": identity(checkpoint)}
    entries = [_entry(run, task, row, tuned, say) for row in run.report.models]
    out = run.run_dir / REPORT
    leaks, checked = _leaks(run, task, records[: run.report.limit], say)
    compare(
        entries,
        task=task,
        records=records,
        out=out,
        title=str(run.ray.name),
        loss_curve=list(metrics.read(run.run_dir)),
        provenance=provenance | about | {"config": run.model_dump(mode="json")},
        source=run.data.source,
        split=run.report.split,
        limit=run.report.limit,
        leaks=leaks,
        checked=checked,
        usd_per_worker_hour=run.report.usd_per_worker_hour,
        processes=os.cpu_count(),
    )
    write_card(run, checkpoint, tuned)
    return out


def summary(folder: Path) -> str:
    """The headline and every metric of a report, for a terminal."""
    results = json.loads((folder / "results.json").read_text())
    models = results["models"]
    names = [metric["name"] for metric in results["metrics"]]
    width = max(len(name) for name in names)
    lines = [" " * width + "".join(f"  {model['label']:>24}" for model in models)]
    for name in names:
        cells = [model["metrics"].get(name) for model in models]
        lines.append(f"{name:<{width}}" + "".join(f"  {_cell(cell):>24}" for cell in cells))
    return "\n".join([results["headline"], "", *lines])


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None or entry["mean"] is None:  # a metric that no item of this row has
        return "-"
    low, high = entry["ci95"]
    return f"{entry['mean']:.3f} [{low:.3f}, {high:.3f}]"


def _leaks(
    run: RunConfig, task: Task, records: Sequence[Record], say: Callable[[str], None]
) -> tuple[dict[str, str], LeakCheck]:
    """Records whose question stands in what the run, or a stage that it continues, was trained on; and what that is."""
    assert run.report is not None, "called for recipes with a report"
    if run.report.split == "train":
        return {}, LeakCheck()
    *earlier, _ = lineage.folders(run.run_dir)
    made = [*(config.load(folder / lineage.CONFIG) for folder in earlier), run]
    look = trained_on.Look(say)
    return look.leaks(task, records, trained_on.parts(made, look, named=bool(earlier)))


def _entry(run: RunConfig, task: Task, row: ReportModel, tuned: Path, say: Callable[[str], None]) -> Entry:
    """The predictions of one row, made or completed now."""
    if row.is_api:
        return _api_entry(run, task, row, say)
    request = _request(run, row, tuned)
    predict(request, say=say)
    details = {"role": row.model, "shots": row.shots, "prompt": request.prompt}
    meta = prediction_file.read_meta(request.out)
    details |= {"seconds": meta["seconds"], "workers": meta["workers"]}
    made = runs.training_facts(run.run_dir) if row.model == "tuned" else {}
    return Entry(request.label, request.out, details=details | made)


def _api_entry(run: RunConfig, task: Task, row: ReportModel, say: Callable[[str], None]) -> Entry:
    """A row behind an API is asked as `fulltune benchmark` asks it: a benchmark of one task and one model."""
    assert run.report is not None, "called for recipes with a report"
    part = benchmark.BenchmarkTask(
        task=run.task,
        options=run.task_options,
        source=run.data.source,
        columns=run.data.columns,
        split=run.report.split,
        limit=run.report.limit,
    )
    keys = row.model_dump(include=API_KEYS)
    asked = {"model": row.model, "shots": row.shots, "prompt": row.prompt, "role": "other"}  # whatever its label says
    model = benchmark.BenchmarkModel(label=_label(row), **asked, **keys)
    whole = benchmark.Benchmark(
        name=str(run.ray.name), tasks=(part,), models=(model,), out=run.ray.storage_path, prices=run.report.prices
    )
    return benchmark._entry(benchmark._Question(whole, part, task, model, _predictions(run, model.label), say))


def _label(row: ReportModel) -> str:
    if row.label is not None:
        return row.label
    name = row.model.removeprefix("openai:")
    label = f"{name}-{row.shots}shot" if row.model == "base" or row.shots else name
    return label if row.prompt is None else f"{label}-{row.prompt}"


def _predictions(run: RunConfig, label: str) -> Path:
    return run.run_dir / "predictions" / f"{label.replace('/', '_')}.jsonl"


def _request(run: RunConfig, row: ReportModel, tuned: Path) -> Request:
    assert run.report is not None, "called for recipes with a report"
    label = _label(row)
    return Request(
        task=run.task,
        split=run.report.split,
        source=run.data.source,
        model=str(tuned) if row.model == "tuned" else _base_model(run),
        out=_predictions(run, label),
        label=label,
        prompt=row.prompt or ("structured" if row.model == "tuned" else "natural"),
        shots=row.shots,
        limit=run.report.limit,
        revision=run.model.revision if row.model == "base" else None,
        task_options=tuple(run.task_options.items()),
        columns=tuple(run.data.columns.items()),
        batch_tokens=run.report.batch_tokens,
        workers=run.ray.max_workers,
        cpus_per_worker=run.ray.cpus_per_worker,
        use_gpu=run.ray.use_gpu,
        role="tuned" if row.model == "tuned" else "base",
        cache=run.run_dir.parent / "cache",
        replace=True,
    )


def _base_model(run: RunConfig) -> str:
    """The model as its authors left it; for random initialisation, the folder the run was started from."""
    if run.model.init == "pretrained":
        return str(run.model.name_or_path)
    return str(json.loads((run.run_dir / "inputs.json").read_text())["model"])
