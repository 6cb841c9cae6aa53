"""Copies the figures of a finished `fulltune benchmark` into `results/`: no row of its data, no answer, no path.

python -m benchmarks.publish_benchmark runs/benchmarks/smollm2_135m results/smollm2_135m_benchmark

README.md              headline and headline table of every task, how the rows were made, the command
<task>/README.md       the report up to its examples, with its plots
<task>/results.json    every figure, without items
benchmark.yaml  provenance.json
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.without_rows import figures_only, refuse_rows, results_only, without_paths

SETTINGS = ("role", "model", "shots", "prompt", "max_new_tokens", "engine", "batching", "training_rows")


def publish(folder: Path, out: Path) -> None:
    """Writes `out` afresh from the benchmark's folder."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    every: dict[str, dict[str, Any]] = json.loads((folder / "benchmark.json").read_text())
    provenance = without_paths(next(iter(every.values()))["provenance"])
    benchmark = provenance.pop("benchmark")
    for results in every.values():
        name = results["task"]
        report = folder / name / "report"
        shutil.copytree(report / "plots", out / name / "plots")
        (out / name / "README.md").write_text(figures_only((report / "report.md").read_text()))
        (out / name / "results.json").write_text(json.dumps(results_only(results), indent=1) + "\n")
    provenance["command"] = ["fulltune", *provenance["command"][1:]]
    (out / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
    (out / "benchmark.yaml").write_text(yaml.safe_dump(benchmark, sort_keys=False))
    (out / "README.md").write_text("\n".join(_readme(every, provenance, benchmark)) + "\n")
    refuse_rows(out, list(_texts(folder, every)))


def _texts(folder: Path, every: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Every answer, and the records that the reports quote."""
    for results in every.values():
        for file in sorted((folder / results["task"] / "predictions").glob("*.jsonl")):
            yield from (json.loads(line)["completion"].strip() for line in file.read_text().splitlines())
        yield from (text for example in results["worst"] for text in (example["input"], example["gold"]))


def _readme(every: dict[str, dict[str, Any]], provenance: dict[str, Any], benchmark: dict[str, Any]) -> Iterator[str]:
    yield f"# {benchmark['name']}"
    for results in every.values():
        yield from ("", f"## [{results['task']}]({results['task']}/README.md)", "", results["headline"], "")
        yield from _table(results)
    yield from ("", "## How it was made", "", "```", " ".join(provenance["command"]), "```", "")
    yield "The benchmark is [benchmark.yaml](benchmark.yaml); versions are in [provenance.json](provenance.json). Code"
    yield f"{provenance['git']}, {provenance['hardware']}. Seconds per answer are wall time in which other work ran on"
    yield "the same machine, so rows are not to be compared by them. Records and answers are not published."
    for results in every.values():
        yield from ("", f"### {results['task']}: {results['n']} records, split {results['split']}", "")
        yield from _settings(results)


def _table(results: dict[str, Any]) -> Iterator[str]:
    """Headline metrics with intervals, and what answers took."""
    metrics = [metric for metric in results["metrics"] if metric["headline"]]
    names = [metric["name"] for metric in metrics]
    yield f"| Model | {' | '.join(names)} | n | missing | truncated | prompt tokens | generated tokens |"
    yield f"|---|{'--:|' * (len(names) + 5)}"
    for model in results["models"]:
        cells = [_cell(model["metrics"][metric["name"]], metric["kind"]) for metric in metrics]
        counts = [str(model[name]) for name in ("n", "missing", "truncated")]
        usage = [_rounded(model["usage"][name]) for name in ("prompt_tokens", "completion_tokens")]
        yield f"| {model['label']} | {' | '.join(cells + counts + usage)} |"


def _cell(value: dict[str, Any], kind: str) -> str:
    if value["mean"] is None:
        return "n/a"
    factor, unit = (1, "") if kind == "mean" else (100, " %")
    mean, low, high = (factor * number for number in (value["mean"], *value["ci95"]))
    return f"{mean:.1f}{unit} \\[{low:.1f}, {high:.1f}\\]"


def _settings(results: dict[str, Any]) -> Iterator[str]:
    yield f"| Row | {' | '.join(SETTINGS)} | seconds per answer |"
    yield f"|---|{'---|' * len(SETTINGS)}--:|"
    for model in results["models"]:
        known = without_paths(model["details"]) | {"role": model["role"]}
        cells = [str(known.get(name, "")) for name in SETTINGS]
        yield f"| {model['label']} | {' | '.join(cells)} | {_rounded(model['usage']['seconds_per_answer'], 2)} |"


def _rounded(value: float | None, digits: int = 1) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    publish(Path(sys.argv[1]), Path(sys.argv[2]))
