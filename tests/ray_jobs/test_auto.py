"""`deepspeed: auto` before a run: printed, kept by the run, refused with a way out where there is no plan."""

from __future__ import annotations

import json

import pytest

import deepspeed_configs
from fulltune import checkpoint, config
from fulltune.plan import search
from fulltune.plan.planner import Options
from fulltune.preflight import micro_batch
from ray_jobs import auto, cli, cluster, recipes, settled
from ray_jobs.plan import refuse_what_cannot_fit
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


def begin(run, *, saved=True):
    """As if a run with this configuration had started, and saved a step."""
    run.run_dir.mkdir(parents=True, exist_ok=True)
    (run.run_dir / "config.yaml").write_text(config.dump(run))
    if saved:
        (run.run_dir / checkpoint.FOLDER / checkpoint.name(7)).mkdir(parents=True)


def test_a_run_keeps_what_it_began_with(tmp_path):
    first = auto.decided(recipe(tmp_path, "ray.accelerator_type=H100"), fetch=False, say=print)
    assert first.deepspeed == "zero1_7b"
    begin(first)
    said = []
    again = auto.decided(recipe(tmp_path), fetch=False, say=said.append)  # on other GPUs now
    assert again.deepspeed == "zero1_7b"
    assert said == ["deepspeed: zero1_7b, chosen when the run began"]
    with pytest.raises(UserError, match="needs 35"):  # and the gate judges what would go on
        refuse_what_cannot_fit(recipe(tmp_path), say=print)


def test_a_first_attempt_that_never_saved_binds_nothing(tmp_path):
    begin(auto.decided(recipe(tmp_path, "ray.accelerator_type=H100"), fetch=False, say=print), saved=False)
    assert auto.decided(recipe(tmp_path), fetch=False, say=print).deepspeed == "zero3_hpz_7b"


def test_hpz_gives_way_where_the_number_of_workers_changed(tmp_path):
    begin(auto.decided(recipe(tmp_path), fetch=False, say=print))
    fewer = auto.decided(recipe(tmp_path, "ray.num_workers=12"), fetch=False, say=print)
    assert fewer.deepspeed == "zero3_7b"


def test_what_cannot_fit_the_nodes_is_refused_unless_forced(tmp_path):
    run, small = recipe(tmp_path, "ray.num_workers=1"), Options(host_memory=60 * 2**30)
    with pytest.raises(UserError, match="host memory per node"):
        auto.decided(run, small, fetch=False, say=print)
    forced = auto.decided(run, small, fetch=False, say=print, force=True)
    assert forced.deepspeed in deepspeed_configs.names()


@pytest.fixture
def a100s(monkeypatch):
    """Nodes that Ray labels A100, whatever the size."""
    import ray

    row = {"CPU": 96.0, "GPU": 8.0, "accelerator_type:A100": 1.0, "memory": 1000.0 * 2**30}
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "node", "Resources": row, "Alive": True}])
    monkeypatch.setattr(cluster, "_host_memory", lambda _: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: row)


@pytest.mark.usefixtures("a100s")
@pytest.mark.parametrize("kind", ["null", "A100"])
def test_nodes_of_one_label_and_two_sizes_are_refused_with_the_way_to_name_the_larger(tmp_path, kind):
    def decide(name, *more):
        changes = [OPEN, "deepspeed=zero2_13b", "ray.num_workers=8", f"ray.accelerator_type={name}", *more]
        run = config.load(recipes.path("viggo_llama2_13b"), [f"ray.storage_path={tmp_path}", *changes])
        return auto.decided(run, cluster.with_gpu(run.ray, Options()), fetch=False, say=print)

    way_out = r"ray\.accelerator_type=A100-80 if they have 85\.0 GB \(a bare A100 is taken for A100-40\), or "
    with pytest.raises(UserError, match=rf"(?s)an A100-40 has 42\.4 GB.*{way_out}"):
        decide(kind)
    with pytest.raises(UserError, match="DeepSpeed wants") as uneven:
        decide(kind, "deepspeed=zero3_hpz_7b", "ray.num_workers=12")
    assert "A100-80" not in str(uneven.value), "which would not help"
    decide("A100-80")
    with pytest.raises(UserError, match="an A100-40 has") as refused:
        decide("A100-40")
    assert "A100-80" not in str(refused.value), "the recipe has named the size"


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
    begin(search.with_budget(first, 777))
    assert auto.decided(run, fetch=False, say=said.append).train.micro_batch_tokens == 777
    assert said[-1] == "train.micro_batch_tokens: 777, as the run began"
    longer = auto.decided(recipe(tmp_path, OPEN, "data.max_length=700"), fetch=False, say=print)
    assert longer.train.micro_batch_tokens != 777, "which was made for shorter rows"


def test_a_preflight_corrects_it_where_it_was_of_this_configuration(tmp_path):
    run = recipe(tmp_path, OPEN)
    chosen = auto.decided(run, fetch=False, say=print)
    record = {"micro_batch": {"chosen": 512, "made_for": micro_batch.made_for(chosen)}}
    run.run_dir.mkdir(parents=True)
    (run.run_dir / settled.PREFLIGHT).write_text(json.dumps(record))
    said = []
    assert auto.decided(run, fetch=False, say=said.append).train.micro_batch_tokens == 512
    assert said[-1] == "train.micro_batch_tokens: 512, as the preflight corrected it"
    begin(chosen)
    assert auto.decided(run, fetch=False, say=print).train.micro_batch_tokens == 512, "also of a run that has begun"
    other = recipe(tmp_path, OPEN, "ray.num_workers=32")
    assert auto.decided(other, fetch=False, say=said.append).train.micro_batch_tokens != 512
    assert "is of another configuration" in said[-1]
    fixed = recipe(tmp_path, "train.micro_batch_tokens=1024")
    assert auto.decided(fixed, fetch=False, say=print).train.micro_batch_tokens == 1024


@pytest.mark.parametrize("text", ["", '{"micro_batch": {"chos', "[]", "{}"])
def test_a_preflights_record_that_was_cut_off_is_none(tmp_path, text):
    run, said = recipe(tmp_path, OPEN), []
    planned = auto.decided(run, fetch=False, say=print).train.micro_batch_tokens
    run.run_dir.mkdir(parents=True)
    (run.run_dir / settled.PREFLIGHT).write_text(text)
    assert auto.decided(run, fetch=False, say=said.append).train.micro_batch_tokens == planned
    assert "cannot be read" in said[-1]


def test_without_a_plan_a_number_is_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"(?s)micro_batch_tokens: auto, and no plan.*micro_batch_tokens=4096"):
        auto.decided(recipe(tmp_path, OPEN, "deepspeed=zero3", "ray.accelerator_type=null"), fetch=False, say=print)
