"""Preparing a run: a mixture of tasks shares one vocabulary, and the same recipe finds its files again."""

from __future__ import annotations

import json

import pytest
import yaml

import tasks
from fulltune import config
from fulltune import tokenizer as tok
from fulltune.data import TokenTable
from ray_jobs.prepare import prepare
from tasks.base import UserError

RECIPE = {
    "task": "viggo",
    "model": {
        "init": "random",
        "config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 1024,
        },
        "tokenizer": {"vocab_size": 600},
    },
    "data": {
        "max_length": 600,
        "mixture": [
            {"limit": 60, "weight": 1},
            {"task": "sql_create_context", "limit": 20, "weight": 1},
            {"task": "gsm8k", "limit": 30, "count": 10},
        ],
    },
    "validation": {"every_steps": 10, "limit": 20},
}


def resolved(folder, **data):
    recipe = folder / "mixed.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"data": RECIPE["data"] | data}))
    return config.load(recipe, [f"ray.storage_path={folder / 'runs'}"])


def test_a_mixture_of_tasks_is_one_table_over_one_vocabulary(tmp_path):
    said = []
    inputs = prepare(resolved(tmp_path), say=said.append).inputs
    table = TokenTable(inputs.train_data)
    ids = [table[i].id for i in range(len(table))]
    assert len(table) == 40 + 40 + 10
    assert len(set(ids)) == len(ids)
    assert sum(name.startswith("viggo-train-") for name in ids) == 40
    assert sum(name.endswith("#2") for name in ids) == 20, "20 SQL rows are taken twice"
    tokenizer = tok.load(str(inputs.model))
    for task in map(tasks.get, ("viggo", "gsm8k", "sql_create_context")):
        for token in task.special_tokens:
            assert len(tokenizer(token, add_special_tokens=False).input_ids) == 1
    assert any(line.startswith("mixture: 40 of 20 examples of sql") and "20 of them repeats" in line for line in said)
    assert any(line.startswith("mixture: 40 of 60 examples of viggo") and "20 not used" in line for line in said)
    assert inputs.valid_data is not None
    assert TokenTable(inputs.valid_data)[0].id == "viggo-valid-0", "validation is that of the recipe's task"


def test_the_same_recipe_finds_its_files_and_another_seed_mixes_anew(tmp_path):
    run = resolved(tmp_path)
    first = prepare(run, say=lambda line: None).inputs
    assert prepare(run, say=lambda line: None).inputs == first
    other = run.model_copy(update={"train": run.train.model_copy(update={"seed": 7})})
    assert prepare(other, say=lambda line: None).inputs.train_data != first.train_data


def test_rows_with_tokens_of_another_task_of_the_mixture_are_refused(tmp_path):
    (token,) = set(tasks.get("sql_create_context").special_tokens[-1:]) - set(tasks.get("viggo").special_tokens)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"ref": f"Do {token} now", "mr": "inform(name[A])"}) + "\n")
    parts = [{"source": str(rows)}, {"task": "sql_create_context", "limit": 5}]
    with pytest.raises(UserError, match="viggo-train-0.*special token"):
        prepare(resolved(tmp_path, mixture=parts), say=lambda line: None)


def test_a_stream_is_named_and_not_written(tmp_path):
    tree = {**RECIPE, "data": {"loader": "streaming"}, "train": {"max_steps": 5}}
    recipe = tmp_path / "streamed.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    run = config.load(recipe, [f"ray.storage_path={tmp_path / 'runs'}"])
    said = []
    inputs = prepare(run, say=said.append).inputs
    assert [file.name for file in inputs.train_data.iterdir()] == ["manifest.json"]
    assert prepare(run, say=said.append).inputs == inputs
    assert any("streaming bundled" in line for line in said)


@pytest.mark.parametrize(
    ("data", "train", "message"),
    [
        ({"loader": "streaming"}, {}, "streaming needs train.max_steps"),
        ({"loader": "streaming", "mixture": [{}]}, {"max_steps": 1}, "one source, not a mixture"),
        ({"mixture": [{"count": 1, "weight": 1}]}, {}, "a count or a weight, not both"),
        ({"mixture": [{"share": 1}]}, {}, "share"),
    ],
)
def test_settings_that_do_not_go_together_are_user_errors(tmp_path, data, train, message):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "data": data, "train": train}))
    with pytest.raises(UserError, match=message):
        config.load(recipe)
