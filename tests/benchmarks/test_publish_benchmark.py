"""What is published of a benchmark holds its figures, and nothing of records, answers or the machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import tasks
from benchmarks import publish_benchmark
from benchmarks.without_rows import without_paths
from evaluation.compare import compare
from evaluation.comparison import Entry
from tasks.sources import load

TASK = tasks.get("viggo")
PLANTED_QUESTION = "Zanzibar Quartz Odyssey IX is a planted sentence that nobody wrote."
PLANTED_ANSWER = "inform(name[Planted Answer Of Nobody], release_year[1831])"
PLANTED_PATH = "/srv/planted-machine/home/somebody"


@pytest.fixture
def benchmark(tmp_path):
    """The folder of a finished benchmark of one task and two rows, whose records, answers and facts are planted."""
    records = [
        replace(record, fields=dict(record.fields) | {"ref": PLANTED_QUESTION})
        for record in load(TASK, "test", "bundled", limit=5)
    ]
    folder = tmp_path / "small"
    entries = []
    for label, answer in (("base", PLANTED_ANSWER), ("tuned", TASK.reference(records[0]))):
        file = folder / "viggo" / "predictions" / f"{label}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"id": r.id, "completion": answer}) + "\n" for r in records))
        details = {"model": f"{PLANTED_PATH}/models/{label}", "shots": 0, "identity": {"model": PLANTED_PATH}}
        entries.append(Entry(label, file, details=details | {"role": label, "batching": f"as in {PLANTED_PATH}/x y"}))
    facts = {
        "command": [f"{PLANTED_PATH}/bin/fulltune", "benchmark", f"{PLANTED_PATH}/small.yaml", f"out={PLANTED_PATH}"],
        "git": "abc",
        "hardware": {"cpus": 2},
        "benchmark": {"name": "small", "out": PLANTED_PATH, "models": [{"model": f"{PLANTED_PATH}/base"}]},
    }
    leaks = {records[0].id: f"same question as: {PLANTED_QUESTION}"}
    found = compare(
        entries,
        task=TASK,
        records=records,
        out=folder / "viggo" / "report",
        provenance=facts,
        split="test",
        source=f"{PLANTED_PATH}/data",
        leaks=leaks,
    )
    (folder / "benchmark.json").write_text(json.dumps({"viggo": found}))
    return folder


def texts(out: Path) -> str:
    return "\n".join(file.read_text() for file in sorted(out.rglob("*")) if file.is_file() and file.suffix != ".png")


def test_no_record_no_answer_and_no_path_is_published(benchmark, tmp_path):
    before = texts(benchmark)
    out = tmp_path / "results"
    publish_benchmark.publish(benchmark, out)
    published = texts(out)
    for planted in ("Zanzibar", "Planted Answer", "planted-machine", "somebody/"):
        assert planted in before, "the test plants it where it could leak"
        assert planted not in published


def test_figures_settings_and_command_are_published(benchmark, tmp_path):
    out = tmp_path / "results"
    publish_benchmark.publish(benchmark, out)
    results = json.loads((out / "viggo" / "results.json").read_text())
    assert [model["label"] for model in results["models"]] == ["base", "tuned"]
    assert results["leaks"]["records"] == 1
    readme = (out / "README.md").read_text()
    assert results["headline"] in readme
    assert "fulltune benchmark small.yaml out=somebody" in readme
    assert "| tuned | tuned | tuned | 0 |" in readme
    assert "](plots/metrics.png)" in (out / "viggo" / "README.md").read_text()
    assert (out / "viggo" / "plots" / "metrics.png").is_file()


def test_an_answer_that_slips_into_the_report_is_refused(benchmark, tmp_path):
    report = benchmark / "viggo" / "report" / "report.md"
    report.write_text(f"{PLANTED_ANSWER}\n{report.read_text()}")
    with pytest.raises(SystemExit, match="Planted Answer"):
        publish_benchmark.publish(benchmark, tmp_path / "results")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/srv/a/b", "b"),
        ("out=/srv/a/b", "out=b"),
        ("read (/srv/a/b.json) at 3 tokens/s", "read (b.json) at 3 tokens/s"),
        ("file:///srv/a", "a"),
        ("http://127.0.0.1:8000/v1 and </SQL> and runs/a/b", "http://127.0.0.1:8000/v1 and </SQL> and runs/a/b"),
    ],
)
def test_absolute_paths_are_cut_wherever_they_stand(text, left):
    assert without_paths({"a": [text]}) == {"a": [left]}
