"""`deepspeed: auto` before a run: printed, kept by the run, refused with a way out where there is no plan."""

from __future__ import annotations

import json

import pytest

from fulltune import config
from fulltune.preflight import micro_batch
from ray_jobs import auto, cli, recipes
from tasks.base import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.delenv("FULLTUNE_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def recipe(tmp_path, *changes):
    overrides = [f"ray.storage_path={tmp_path}", "deepspeed=auto", *changes]
    return config.load(recipes.path("viggo_llama2_7b"), overrides)


def test_the_choice_is_said_with_its_figures(tmp_path):
    said = []
    run = auto.decided(recipe(tmp_path), fetch=False, say=said.append)
    assert run.deepspeed == "zero3_hpz_7b"
    assert len(said) == 1
    assert "auto is zero3_hpz_7b: the fastest that fits, planned " in said[0]


def test_a_run_keeps_what_it_began_with(tmp_path):
    run = recipe(tmp_path, "ray.accelerator_type=H100")
    first = auto.decided(run, fetch=False, say=print)
    assert first.deepspeed == "zero1_7b"
    run.run_dir.mkdir(parents=True)
    (run.run_dir / "config.yaml").write_text(config.dump(first))
    said = []
    again = auto.decided(recipe(tmp_path), fetch=False, say=said.append)  # on other GPUs now
    assert again.deepspeed == "zero1_7b"
    assert said == ["deepspeed: zero1_7b, chosen when the run began"]


def test_a_named_file_is_not_touched(tmp_path):
    run = recipe(tmp_path, "deepspeed=zero2")
    assert auto.decided(run, fetch=False, say=pytest.fail) is run


@pytest.mark.parametrize("change", ["ray.accelerator_type=null", "model.name_or_path=nobody/nothing"])
def test_without_a_plan_the_way_out_is_named(tmp_path, change):
    with pytest.raises(UserError, match=r"(?s)deepspeed: auto, and no plan.*deepspeed=zero3"):
        auto.decided(recipe(tmp_path, change), fetch=False, say=print)


def test_print_config_shows_the_file_and_plan_plans_it(tmp_path, capsys):
    changes = ["viggo_llama2_7b", "deepspeed=auto", f"ray.storage_path={tmp_path}"]
    assert cli.main(["train", *changes, "--print-config"]) == 0
    assert "deepspeed: zero3_hpz_7b" in capsys.readouterr().out
    assert cli.main(["plan", *changes]) == 0
    printed = capsys.readouterr().out
    assert "ZeRO-3: planned" in printed
    assert "deepspeed: auto is zero3_hpz_7b" in printed
    assert cli.main(["train", *changes, "model.name_or_path=nobody/nothing", "--print-config"]) == 0
    printed = capsys.readouterr()
    assert "deepspeed: auto" in printed.out
    assert "stays auto" in printed.err


OPEN = "train.micro_batch_tokens=auto"


def test_an_open_micro_batch_is_said_and_kept_by_the_run(tmp_path):
    run, said = recipe(tmp_path, OPEN), []
    first = auto.decided(run, fetch=False, say=said.append)
    budget = first.train.micro_batch_tokens
    assert budget >= run.data.max_length
    assert said[1].startswith(f"train.micro_batch_tokens: auto is {budget:,} by plan, ")
    run.run_dir.mkdir(parents=True)
    (run.run_dir / "config.yaml").write_text(config.dump(first).replace(str(budget), "777"))
    assert auto.decided(run, fetch=False, say=said.append).train.micro_batch_tokens == 777
    assert said[-1] == "train.micro_batch_tokens: 777, as the run began"


def test_a_preflight_corrects_it_where_it_was_of_this_configuration(tmp_path):
    run = recipe(tmp_path, OPEN)
    chosen = auto.decided(run, fetch=False, say=print)
    record = {"micro_batch": {"chosen": 512, "made_for": micro_batch.made_for(chosen)}}
    run.run_dir.mkdir(parents=True)
    (run.run_dir / auto.PREFLIGHT).write_text(json.dumps(record))
    said = []
    assert auto.decided(run, fetch=False, say=said.append).train.micro_batch_tokens == 512
    assert said[-1] == "train.micro_batch_tokens: 512, as the preflight corrected it"
    (run.run_dir / "config.yaml").write_text(config.dump(chosen))
    assert auto.decided(run, fetch=False, say=print).train.micro_batch_tokens == 512, "also of a run that has begun"
    other = recipe(tmp_path, OPEN, "ray.num_workers=32")
    assert auto.decided(other, fetch=False, say=said.append).train.micro_batch_tokens != 512
    assert "is of another configuration" in said[-1]
    fixed = recipe(tmp_path, "train.micro_batch_tokens=1024")
    assert auto.decided(fixed, fetch=False, say=print).train.micro_batch_tokens == 1024


def test_without_a_plan_a_number_is_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"(?s)micro_batch_tokens: auto, and no plan.*micro_batch_tokens=4096"):
        auto.decided(recipe(tmp_path, OPEN, "deepspeed=zero3", "ray.accelerator_type=null"), fetch=False, say=print)
