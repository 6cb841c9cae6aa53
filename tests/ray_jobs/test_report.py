"""What follows a training run, with answers that are given: figures, leaks, prices, configuration, card and summary."""

from __future__ import annotations

import json

import pytest
import yaml
from huggingface_hub import ModelCard

import tasks
from evaluation import prediction_file
from evaluation.predictions import Prediction, write_predictions
from fulltune import config
from ray_jobs import export, report
from tasks.sources import load

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TREE = {
    "task": "viggo",
    "model": {"init": "random", "config": SHAPE, "tokenizer": {"vocab_size": 400}},
    "data": {"limit": 40},
    "report": {"limit": 6, "models": [{"model": "base"}, {"model": "base", "shots": 3}, {"model": "tuned"}]},
}
LOGGED = {"step": 3, "loss": 1.0, "tokens": 3600, "tokens_per_s": 1.0}


def made(tmp_path, name="run", rows=40, **changes):
    """A run folder as `train` leaves it, with one checkpoint that holds nothing."""
    tree = TREE | {"ray": {"name": name, "storage_path": str(tmp_path)}} | changes
    run = config.resolve(tree, "test")
    checkpoint = run.run_dir / "checkpoints" / "step-00000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text(json.dumps({"files": {"a": {"sha256": name}}}))
    (run.run_dir / "config.yaml").write_text(config.dump(run))
    (run.run_dir / "inputs.json").write_text(json.dumps({"model": str(tmp_path / "start")}))
    (run.run_dir / "metrics.jsonl").write_text(json.dumps(LOGGED) + "\n")
    facts = {"git": "abc", "versions": {"torch": "2"}, "data": {"train": {"rows": rows}}}
    (run.run_dir / "provenance.json").write_text(json.dumps(facts))
    return run, checkpoint


@pytest.fixture
def answered(monkeypatch):
    """Exports without tensors, and answers that are right for the tuned model and empty for the others."""

    def predict(request, *, say):
        task = tasks.get(request.task)
        records = load(task, request.split, request.source, limit=request.limit)
        texts = [task.reference(record) if request.role == "tuned" else "" for record in records]
        request.out.parent.mkdir(parents=True, exist_ok=True)
        write_predictions(request.out, [Prediction(r.id, t) for r, t in zip(records, texts, strict=True)])
        prediction_file.write_meta(request.out, {"seconds": 36.0, "workers": 1, "prompt": request.prompt})

    def exported(checkpoint, out, task, *, dtype, card):
        out.mkdir(parents=True, exist_ok=True)
        (out / "README.md").write_text(card)
        (out / "fulltune.json").write_text(json.dumps(export.origin(checkpoint)))
        return out

    monkeypatch.setattr(report, "predict", predict)
    monkeypatch.setattr(export, "export", exported)


@pytest.fixture
def reported(tmp_path, answered):
    run, checkpoint = made(tmp_path)
    return run, checkpoint, report.report(run, checkpoint, say=print)


def test_the_configuration_reads_as_yaml(reported):
    run, _, folder = reported
    assert json.loads((folder / "results.json").read_text())["provenance"]["config"]["task"] == "viggo"
    block = (folder / "report.md").read_text().rpartition("task: viggo")[2].partition("```")[0]
    assert yaml.safe_load("task: viggo" + block) == run.model_dump(mode="json")


def test_the_card_of_the_export_has_the_figures_of_the_report(reported):
    run, _, folder = reported
    path = run.run_dir / "export" / "README.md"
    text = path.read_text()
    results = json.loads((folder / "results.json").read_text())
    assert f"**{results['headline']}**" in text
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}
    assert "100.0 % [61.0, 100.0] n = 6" in lines["tuned"]
    assert "0.0 % [0.0, 39.0] n = 6" in lines["base-3shot (base)"]
    assert "natural, 3 examples" in lines["base-3shot (base)"]
    found = {result.metric_type: result for result in ModelCard.load(path).data.eval_results}
    headline = results["headline_metric"]
    assert found[headline].metric_value == 1.0
    assert "95 % interval [61.0, 100.0], n = 6" in found[headline].metric_name
    assert (found[headline].dataset_split, found[headline].task_type) == ("test", "text-generation")
    assert not list(path.parent.glob("*.tmp*")), "written whole or not at all"


def test_an_export_without_a_report_says_so_and_a_later_one_finds_the_figures(tmp_path, answered):
    run, checkpoint = made(tmp_path)
    out = tmp_path / "elsewhere"
    first = (export.export_run(run, checkpoint, out) / "README.md").read_text()
    assert "Not measured" in first
    assert "model-index" not in first
    report.report(run, checkpoint, say=print)
    assert "model-index" in (export.export_run(run, checkpoint, out) / "README.md").read_text()
    other = checkpoint.with_name("step-00000002")
    other.mkdir()
    (other / "manifest.json").write_text('{"files": {"a": {"sha256": "another"}}}')
    told = (export.export_run(run, other, tmp_path / "other") / "README.md").read_text()
    assert "Not measured" in told, "figures of another checkpoint are not its own"


def test_a_row_that_was_trained_on_is_flagged(tmp_path, answered):
    task = tasks.get("viggo")
    asked, fresh = load(task, "test", "bundled", limit=6), load(task, "train", "bundled", limit=10)
    folder = tmp_path / "data"
    folder.mkdir()
    for split, records in (("train", [*fresh, asked[2]]), ("test", asked)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(dict(r.fields)) + "\n" for r in records))
    run, checkpoint = made(tmp_path, data={"source": str(folder)})
    results = json.loads((report.report(run, checkpoint, say=print) / "results.json").read_text())
    assert list(results["leaks"]["records"]) == ["viggo-test-2"]
    assert "the same question" in results["leaks"]["records"]["viggo-test-2"]
    run, checkpoint = made(tmp_path, name="short", data={"source": str(folder), "limit": 10})
    results = json.loads((report.report(run, checkpoint, say=print) / "results.json").read_text())
    assert results["leaks"]["records"] == {}, "the row is there, and was not trained on"


def test_a_price_per_worker_hour_gives_the_cost_of_tuning(tmp_path, answered):
    run, checkpoint = made(tmp_path, report=TREE["report"] | {"usd_per_worker_hour": 2.0})
    folder = report.report(run, checkpoint, say=print)
    economy = json.loads((folder / "results.json").read_text())["economy"]
    assert (economy["worker_hours"], economy["tuning_usd"]) == (1.0, 2.0)
    assert "start-up, saving and lost work are not included" in (folder / "report.md").read_text()


def test_a_stage_has_the_rows_hours_base_data_and_leaks_of_those_before_it(tmp_path, answered):
    asked = load(tasks.get("viggo"), "test", "bundled", limit=1)[0]
    extra = tmp_path / "secret" / "extra"
    extra.mkdir(parents=True)
    (extra / "train.jsonl").write_text(json.dumps(dict(asked.fields)) + "\n")
    first, checkpoint = made(
        tmp_path, "two/first", rows=1, data={"source": str(extra)}, model={"name_or_path": "some-lab/base-1b"}
    )
    export.export_run(first, checkpoint, first.run_dir / "export")
    base = {"name_or_path": str(first.run_dir / "export")}
    second, checkpoint = made(tmp_path, "two/second", model=base)
    results = json.loads((report.report(second, checkpoint, say=print) / "results.json").read_text())
    assert results["economy"]["worker_hours"] == 2.0
    assert list(results["leaks"]["records"]) == [asked.id]
    assert "two/first" in results["leaks"]["records"][asked.id]
    tuned = next(model for model in results["models"] if model["label"] == "tuned")
    assert (tuned["details"]["training_rows"], tuned["details"]["stages"]) == (41, 2)
    text = (second.run_dir / "export" / "README.md").read_text()
    card = ModelCard(text).data
    assert (card.base_model, card.license) == ("some-lab/base-1b", "other")
    assert "extra (the user's own, task viggo) | unknown" in text
    assert "generated rows of task viggo | apache-2.0" in text
    assert "runs/two/first/export" in text, "the second recipe starts from the first"
    assert str(tmp_path) not in text


def test_the_summary_shows_a_metric_that_no_item_of_a_row_has(tmp_path):
    low = {"mean": 0.5, "ci95": [0.25, 0.75], "n": 4}
    models = [
        {"label": "base", "metrics": {"a": {"mean": None, "ci95": [None, None], "n": 0}}},
        {"label": "tuned", "metrics": {"a": low}},
        {"label": "other", "metrics": {}},
    ]
    results = {"headline": "So it is.", "metrics": [{"name": "a"}], "models": models}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert report.summary(tmp_path).splitlines()[-1].split() == ["a", "-", "0.500", "[0.250,", "0.750]", "-"]
