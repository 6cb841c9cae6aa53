"""A benchmark's file is checked before anything is spent; a run asks a local model and an endpoint, and is resumed."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

import tasks
from evaluation import prediction_file
from evaluation.comparison import LeakCheck
from fulltune import config
from fulltune import tokenizer as tok
from ray_jobs import benchmark, recipes
from ray_jobs.cli import main
from tasks.base import UserError
from tasks.sources import load

TASK = tasks.get("viggo")
RECORDS = load(TASK, "test", "bundled", limit=6)
PLAIN = {"tasks": [{"task": "viggo"}], "models": [{"label": "a", "model": "folder"}]}


def described(tmp_path, **changes):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(PLAIN | changes))
    return path


def test_a_file_names_its_benchmark_and_defaults_are_filled_in(tmp_path):
    found = benchmark.read(described(tmp_path), ["batch_tokens=64"])
    assert (found.name, found.batch_tokens, found.tasks[0].split) == ("small", 64, "test")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"models": [{"label": "a", "model": "x"}, {"label": "a", "model": "y"}]}, "stands twice"),
        ({"models": [{"label": "a", "model": "x", "tasks": ["gsm8k"]}]}, "gsm8k"),
        ({"models": [{"label": "a", "model": "x", "shot": 1}]}, "shot"),
        ({"modles": []}, "did you mean 'models'"),
        ({"tasks": []}, "tasks"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        benchmark.read(described(tmp_path, **changes))


def test_a_structured_prompt_for_an_endpoint_is_refused(tmp_path):
    models = [{"label": "api", "model": "openai:x", "base_url": "http://127.0.0.1:9/v1", "prompt": "structured"}]
    found = benchmark.read(described(tmp_path, models=models, out=str(tmp_path)))
    with pytest.raises(UserError, match="chat endpoint"):
        benchmark._ask_api(
            benchmark._Question(found, found.tasks[0], TASK, found.models[0], tmp_path / "p.jsonl", print)
        )


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "random"
    tokenizer = tok.train_bpe(["".join(s.text for s in TASK.render(r)) for r in RECORDS], 350)
    tok.add_task_tokens(tokenizer, TASK)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_local_model_and_an_endpoint_end_in_one_report_and_nothing_is_asked_twice(
    tmp_path, folder, endpoint, monkeypatch, capsys
):
    url, asked = endpoint
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    models = [
        {"label": "random", "model": str(folder), "role": "tuned"},
        {"label": "fixed", "model": "openai:fixed", "base_url": url, "shots": 2},
    ]
    path = described(tmp_path, models=models, out=str(tmp_path / "out"), cpus_per_worker=0.5)
    assert main(["benchmark", str(path), "--limit", "6"]) == 0
    assert len(asked) == 6
    results = json.loads((tmp_path / "out" / "small" / "benchmark.json").read_text())["viggo"]
    rows = {model["label"]: model for model in results["models"]}
    assert rows["fixed"]["metrics"]["parsable"]["mean"] == 1
    assert rows["random"]["metrics"]["parsable"]["n"] == 6
    assert (tmp_path / "out" / "small" / "viggo" / "report" / "report.html").exists()
    assert "viggo/report/report.html" in (tmp_path / "out" / "small" / "index.md").read_text()
    capsys.readouterr()
    assert main(["benchmark", str(path), "--limit", "6", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"viggo"}
    assert len(asked) == 6, "the second run asks nothing"


TWO_TASKS = {"tasks": [{"task": "viggo", "max_new_tokens": 7}, {"task": "gsm8k"}]}


def questions(found, folder):
    """The question that each task puts to the first model."""
    return {
        part.task: benchmark._Question(found, part, tasks.get(part.task), found.models[0], folder / "p.jsonl", print)
        for part in found.tasks
        if part.task in (found.models[0].answers or (part.task,))
    }


def test_a_model_per_task_stands_in_one_row_and_a_run_folder_for_its_export(tmp_path):
    (tmp_path / "run" / "export").mkdir(parents=True)
    models = [{"label": "tuned", "prompt": "natural", "model": {"viggo": str(tmp_path / "run"), "gsm8k": "folder"}}]
    found = benchmark.read(described(tmp_path, **TWO_TASKS, models=models))
    requests = {name: benchmark._request(asked) for name, asked in questions(found, tmp_path).items()}
    assert {name: request.model for name, request in requests.items()} == {
        "viggo": str(tmp_path / "run" / "export"),
        "gsm8k": "folder",
    }
    assert {name: request.max_new_tokens for name, request in requests.items()} == {"viggo": 7, "gsm8k": None}
    del models[0]["model"]["gsm8k"]
    assert set(questions(benchmark.read(described(tmp_path, **TWO_TASKS, models=models)), tmp_path)) == {"viggo"}


def test_a_model_per_task_names_tasks_of_the_benchmark_and_no_others_beside(tmp_path):
    models = [{"label": "a", "model": {"sql_create_context": "x"}}]
    with pytest.raises(UserError, match="sql_create_context"):
        benchmark.read(described(tmp_path, **TWO_TASKS, models=models))
    models = [{"label": "a", "model": {"viggo": "x"}, "tasks": ["viggo"]}]
    with pytest.raises(UserError, match="leave tasks out"):
        benchmark.read(described(tmp_path, **TWO_TASKS, models=models))


@pytest.mark.parametrize("name", recipes.names(recipes.BENCHMARKS))
def test_every_shipped_benchmark_resolves_and_asks_tasks_that_the_hub_has(name):
    found = benchmark.read(recipes.path(name, recipes.BENCHMARKS))
    assert found.name == name
    for part in found.tasks:
        task = tasks.get(part.task, **part.options)
        assert task.hub is not None
        assert part.limit is None or part.limit >= 200
        assert 0 < (part.max_new_tokens or task.max_new_tokens) <= task.max_new_tokens


def test_an_unknown_benchmark_names_the_nearest(capsys):
    assert main(["benchmark", "smolm2_135m"]) == 2
    assert "did you mean 'smollm2_135m'" in capsys.readouterr().err


def test_a_model_that_thinks_first_has_a_limit_of_its_own(tmp_path):
    models = [{"label": "thinking", "model": "folder", "prompt": "natural", "max_new_tokens": 4000}]
    found = benchmark.read(described(tmp_path, **TWO_TASKS, models=models))
    requests = {name: benchmark._request(asked) for name, asked in questions(found, tmp_path).items()}
    assert {name: request.max_new_tokens for name, request in requests.items()} == {"viggo": 4000, "gsm8k": 4000}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_extractor_reads_the_answers_of_tasks_that_have_a_use_for_it(tmp_path, endpoint, monkeypatch):
    url, asked = endpoint
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    where = {"model": "openai:fixed", "base_url": url}
    extractor = {"model": "openai:reader", "base_url": url}
    path = described(
        tmp_path, **TWO_TASKS, models=[{"label": "fixed"} | where], extractor=extractor, out=str(tmp_path / "out")
    )
    assert main(["benchmark", str(path), "--limit", "3"]) == 0
    results = json.loads((tmp_path / "out" / "small" / "benchmark.json").read_text())
    assert [metric["name"] for metric in results["gsm8k"]["metrics"]][-1] == "llm_extracted"
    assert "llm_extracted" not in [metric["name"] for metric in results["viggo"]["metrics"]]
    assert sum(question["model"] == "reader" for question in asked) == 1, "equal answers are read once"
    assert sum(question["model"] == "fixed" for question in asked) == 6
    before = len(asked)
    assert main(["benchmark", str(path), "--limit", "3"]) == 0
    assert len(asked) == before, "the second run asks nothing"


@pytest.mark.parametrize(("given", "role"), [({}, None), ({"role": "other"}, "other")])
def test_only_a_role_that_the_user_gives_is_one(tmp_path, monkeypatch, given, role):
    """A file of an older version says `other` where nobody did."""
    models = [{"label": "tuned", "model": "folder", "prompt": "natural"} | given]
    asked = questions(benchmark.read(described(tmp_path, models=models)), tmp_path)["viggo"]
    assert benchmark._request(asked).role == role
    written = {} if role is None else {"role": role}
    monkeypatch.setattr(benchmark, "predict", lambda request, **_: prediction_file.write_meta(request.out, written))
    assert benchmark._entry(asked).details.get("role") == role


def trained(tmp_path, name, records, **data):
    """A run folder that says it was trained on these records, and a source that asks the six of RECORDS."""
    source = tmp_path / "data" / name
    source.mkdir(parents=True)
    for split, rows in (("train", records), ("test", RECORDS)):
        (source / f"{split}.jsonl").write_text("".join(json.dumps(dict(row.fields)) + "\n" for row in rows))
    ray = {"name": name, "storage_path": str(tmp_path)}
    tree = {"task": "viggo", "model": {"name_or_path": "some/hub-id"}, "train": {"max_steps": 9}, "ray": ray}
    run = config.resolve(tree | {"data": {"source": str(source)} | data}, "test")
    run.run_dir.mkdir()
    (run.run_dir / "config.yaml").write_text(config.dump(run))
    return run.run_dir, source


@pytest.mark.parametrize(
    ("data", "found", "against", "left_out"),
    [
        ({}, ["viggo-test-1", "viggo-test-4"], ["train of a (4 rows)"], []),
        ({"limit": 3}, ["viggo-test-1"], ["train of a (3 rows)"], []),
        ({"loader": "streaming"}, ["viggo-test-5"], ["train (1 row)"], ["train of a, a stream"]),
    ],
)
def test_leaks_are_looked_for_in_what_the_run_was_trained_on(tmp_path, data, found, against, left_out):
    fresh = load(TASK, "train", "bundled", limit=2)
    run, _ = trained(tmp_path, "a", [*fresh, RECORDS[1], RECORDS[4]], **data)
    _, asked = trained(tmp_path, "b", [RECORDS[5]])
    models = [
        {"label": "base", "model": "some/hub-id", "role": "base"},
        {"label": "t", "model": str(run), "role": "tuned"},
    ]
    part = {"task": "viggo", "source": str(asked)}
    whole = benchmark.read(described(tmp_path, tasks=[part], models=models))
    leaks, checked = benchmark._leaks(whole, whole.tasks[0], TASK, RECORDS, print)
    assert (list(leaks), list(checked.against), list(checked.left_out)) == (found, against, left_out)


def test_leaks_are_looked_for_in_the_whole_training_split_where_the_tuning_is_not_known(tmp_path):
    run, _ = trained(tmp_path, "a", [RECORDS[1]])
    _, asked = trained(tmp_path, "b", [RECORDS[5]])
    stranger = {"label": "u", "model": "some/hub-id", "role": "tuned"}
    part = {"task": "viggo", "source": str(asked)}
    for models, found in (
        ([stranger], ["viggo-test-5"]),
        ([stranger, {"label": "t", "model": str(run)}], ["viggo-test-1", "viggo-test-5"]),
        ([{"label": "t", "model": str(run / "export")}], ["viggo-test-1"]),
    ):
        whole = benchmark.read(described(tmp_path, tasks=[part], models=models))
        assert list(benchmark._leaks(whole, whole.tasks[0], TASK, RECORDS, print)[0]) == found
    whole = benchmark.read(described(tmp_path, tasks=[part | {"split": "train"}], models=[stranger]))
    assert benchmark._leaks(whole, whole.tasks[0], TASK, RECORDS, print) == ({}, LeakCheck())
