"""What follows a training run whose recipe has a `report:` key: export, predict with every model, score, compare."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluation import prediction_file, training
from evaluation.compare import compare
from evaluation.comparison import Entry
from fulltune import card, config, device, metrics
from fulltune.config import ReportModel, RunConfig
from fulltune.export import MARK, export, origin
from ray_jobs.predict import Request, predict
from ray_jobs.prepare import task_of
from tasks.sources import load


def export_run(run: RunConfig, checkpoint: Path, out: Path) -> Path:
    """Exports a checkpoint of a run with its model card; an export of the same checkpoint is kept."""
    mark = out / MARK
    if mark.exists() and json.loads(mark.read_text()) == origin(checkpoint):
        return out
    task = task_of(run)
    facts_file = run.run_dir / "provenance.json"
    facts = json.loads(facts_file.read_text()) if facts_file.exists() else {}
    text = card.text(run, task, step=int(checkpoint.name.removeprefix("step-")), provenance=facts)
    dtype = device.dtype_name(run.model.dtype, use_gpu=run.ray.use_gpu)
    return export(checkpoint, out, task, dtype=dtype, card=text)


def report(run: RunConfig, checkpoint: Path, *, say: Callable[[str], None]) -> Path:
    """Predicts, scores and compares; returns the folder of the report.

    The base is the model the run started from: for a randomly initialised one, that initialisation.
    """
    assert run.report is not None, "called for recipes with a report"
    task = task_of(run)
    tuned = export_run(run, checkpoint, run.run_dir / "export")
    records = load(task, run.report.split, run.data.source, columns=run.data.columns or None, limit=run.report.limit)
    steps = list(metrics.read(run.run_dir))
    provenance = json.loads((run.run_dir / "provenance.json").read_text())
    made = training.facts(run.model_dump(mode="json"), steps, provenance)
    entries = []
    for row in run.report.models:
        request = _request(run, row, tuned)
        predict(request, say=say)
        details = {"role": row.model, "shots": row.shots, "prompt": request.prompt}
        meta = prediction_file.read_meta(request.out)
        details |= {"seconds": meta["seconds"], "workers": meta["workers"]}
        entries.append(Entry(request.label, request.out, details=details | (made if row.model == "tuned" else {})))
    out = run.run_dir / "report"
    compare(
        entries,
        task=task,
        records=records,
        out=out,
        title=str(run.ray.name),
        loss_curve=steps,
        provenance=provenance | {"config": config.dump(run)},
        source=run.data.source,
        split=run.report.split,
        processes=os.cpu_count(),
    )
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
    if entry is None:
        return "-"
    low, high = entry["ci95"]
    return f"{entry['mean']:.3f} [{low:.3f}, {high:.3f}]"


def _request(run: RunConfig, row: ReportModel, tuned: Path) -> Request:
    assert run.report is not None, "called for recipes with a report"
    prompt = row.prompt or ("structured" if row.model == "tuned" else "natural")
    label = f"{row.model}-{row.shots}shot" if row.model == "base" or row.shots else row.model
    if row.prompt is not None:
        label += f"-{row.prompt}"
    return Request(
        task=run.task,
        split=run.report.split,
        source=run.data.source,
        model=str(tuned) if row.model == "tuned" else _base_model(run),
        out=run.run_dir / "predictions" / f"{label}.jsonl",
        label=label,
        prompt=prompt,
        shots=row.shots,
        limit=run.report.limit,
        revision=run.model.revision if row.model == "base" else None,
        task_options=tuple(run.task_options.items()),
        columns=tuple(run.data.columns.items()),
        batch_tokens=run.report.batch_tokens,
        workers=run.ray.max_workers,
        cpus_per_worker=run.ray.cpus_per_worker,
        use_gpu=run.ray.use_gpu,
        role=row.model,
        cache=run.run_dir.parent / "cache",
        replace=True,
    )


def _base_model(run: RunConfig) -> str:
    """The model as its authors left it; for random initialisation, the folder the run was started from."""
    if run.model.init == "pretrained":
        return str(run.model.name_or_path)
    return str(json.loads((run.run_dir / "inputs.json").read_text())["model"])
