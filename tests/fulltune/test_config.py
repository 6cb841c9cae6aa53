"""Recipes: overrides, strictness with advice, and a dump that reads back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fulltune import config, schema
from tasks.base import UserError

MINIMAL = {"task": "viggo", "model": {"name_or_path": "some/model"}}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def test_the_name_defaults_to_the_recipes(recipe):
    assert config.load(recipe).ray.name == "mine"
    assert config.load(recipe, ["ray.name=other"]).run_dir == Path("runs/other").absolute()


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.learning_rate=5e-4", lambda c: c.train.learning_rate == 5e-4),
        ("train.max_steps=null", lambda c: c.train.max_steps is None),
        ("data.packing=false", lambda c: c.data.packing is False),
        ("data.columns={target: ref}", lambda c: c.data.columns == {"target": "ref"}),
        ("deepspeed=zero3", lambda c: c.deepspeed == "zero3"),
        ("ray.num_workers=4", lambda c: (c.ray.min_workers, c.ray.max_workers) == (4, 4)),
        ("ray.num_workers=[1, 4]", lambda c: (c.ray.min_workers, c.ray.max_workers) == (1, 4)),
        ("report.limit=5", lambda c: c.report is not None and c.report.limit == 5),
    ],
)
def test_overrides_are_read_as_yaml(recipe, override, read):
    assert read(config.load(recipe, [override]))


def test_later_overrides_win(recipe):
    assert config.load(recipe, ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("train.learning_rat=1", "train.learning_rate"),
        ("ray.workers=2", "ray.num_workers"),
        ("learning_rate=1", "train.learning_rate"),
        ("modle.dtype=float32", "model"),
    ],
)
def test_unknown_keys_name_the_nearest(recipe, override, advice):
    with pytest.raises(UserError) as error:
        config.load(recipe, [override])
    assert f"did you mean '{advice}" in error.value.fix


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.num_epochs=-1", "train.num_epochs"),
        ("train.lr_scheduler=sine", "'sine'"),
        ("method.kind=lora", "method.kind"),
        ("model.name_or_path=null", "name_or_path is needed"),
        ("ray.num_workers=0", "ray.num_workers: wanted a number from 1"),
        ("ray.num_workers=[4, 1]", "min <= max"),
        ("novalue", "novalue"),
    ],
)
def test_bad_values_are_user_errors(recipe, override, words):
    with pytest.raises(UserError, match=words):
        config.load(recipe, [override])


API = {"model": "openai:gpt-4", "base_url": "http://127.0.0.1:1/v1", "budget_usd": 1.0}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"model": "tunde"}, "'tunde' is none of base, tuned and openai:NAME"),
        ({"model": "base", "budget_usd": 1.0}, "budget_usd belong to a model openai:NAME"),
        (API | {"prompt": "structured"}, "leave prompt out"),
    ],
)
def test_a_row_of_the_report_is_base_tuned_or_an_api(row, told):
    with pytest.raises(UserError, match=told):
        config.resolve(REPORT | {"report": {"models": [row]}}, "test")


REPORT = {"task": "viggo", "model": {"name_or_path": "x"}, "ray": {"name": "r"}}


def test_rows_of_the_report_and_its_price_are_read_back_from_the_stored_configuration(tmp_path):
    wanted = {"usd_per_worker_hour": 2.5, "models": [{"model": "base"}, API, {"model": "tuned"}]}
    run = config.resolve(REPORT | {"report": wanted}, "test")
    (tmp_path / "config.yaml").write_text(config.dump(run))
    assert config.load(tmp_path / "config.yaml") == run
    assert [row.is_api for row in run.report.models] == [False, True, False]


def test_broken_yaml_and_missing_files_are_user_errors(tmp_path):
    (tmp_path / "broken.yaml").write_text("task: [viggo")
    with pytest.raises(UserError, match="valid YAML"):
        config.load(tmp_path / "broken.yaml")
    with pytest.raises(UserError, match="No such file"):
        config.load(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- task")
    with pytest.raises(UserError, match="holds list"):
        config.load(tmp_path / "list.yaml")


def test_every_key_is_described_or_speaks_for_itself():
    keys = list(schema.all_keys(config.RunConfig))
    assert "train.learning_rate" in keys
    assert "deepspeed" in keys
    assert len(keys) == len(set(keys))
