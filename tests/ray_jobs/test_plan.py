"""`fulltune plan`: its JSON, every recipe, its speed, and the gate in front of `train` and `submit`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from ray_jobs import cli, recipes
from ray_jobs.plan import known
from tasks.base import UserError

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "docs" / "plan.schema.json").read_text())
HUB = [name for name in recipes.names() if "llama2" in name]
TINY = [name for name in recipes.names() if "tiny" in name]


@pytest.fixture(autouse=True)
def no_real_data(monkeypatch):
    monkeypatch.delenv("FULLTUNE_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def planned(capsys, *arguments):
    code = cli.main(["plan", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", [*HUB, "demo"])
def test_recipes_that_ship_fit_and_keep_the_schema(name, capsys):
    code, found = planned(capsys, name)
    jsonschema.validate(found, SCHEMA)
    assert code == 0
    assert found["fits"]
    assert sum(size for part, size in found["gpu_bytes"].items() if part != "total") == found["gpu_bytes"]["total"]


@pytest.mark.parametrize("name", TINY)
def test_recipes_that_train_a_tokenizer_are_planned_from_their_data(name, real_data, monkeypatch, capsys):
    monkeypatch.setenv("FULLTUNE_DATA", str(real_data))
    code, found = planned(capsys, name, "data.limit=500")
    jsonschema.validate(found, SCHEMA)
    assert code == 0
    assert found["fits"]


@pytest.mark.parametrize("name", TINY)
def test_a_tokenizer_of_texts_on_the_hub_is_assumed_and_nothing_is_asked_of_the_network(name, monkeypatch, capsys):
    from fulltune import config
    from ray_jobs.prepare import task_of
    from tasks import origins

    monkeypatch.setattr(origins, "_hub", lambda *_: pytest.fail("the network was asked without --fetch"))
    code, found = planned(capsys, name)
    jsonschema.validate(found, SCHEMA)
    assert (code, found["fits"]) == (0, True)
    recipe = config.load(recipes.path(name))
    size = recipe.model.tokenizer.vocab_size
    assert any("no tokenizer trained" in line and f"vocab_size, {size:,}" in line for line in found["assumptions"])
    model_config, _ = known(recipe, fetch=False, say=print)
    tokens = size + len(task_of(recipe).special_tokens)
    assert tokens <= model_config["vocab_size"] < tokens + 64


def test_every_recipe_is_planned_somewhere():
    by_hand = {name for name in recipes.names() if "smollm2" in name}  # config.json is fetched by hand: below
    assert {*HUB, *TINY, "demo"} | by_hand == set(recipes.names())


def test_a_model_folder_and_data_at_hand_are_counted(tmp_path, capsys):
    config = {"model_type": "llama", "vocab_size": 100, "hidden_size": 8, "intermediate_size": 16,
              "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = [f"model.name_or_path={tmp_path}", "data.source=bundled", "data.limit=100"]
    code, found = planned(capsys, "viggo_smollm2_135m", *arguments)
    jsonschema.validate(found, SCHEMA)
    assert (code, found["examples"], found["gpu"], found["same_on"]) == (0, 100, None, None)
    assert found["parameters"] == 2 * 128 * 8 + 2 * (4 * 64 + 3 * 128 + 16) + 8  # 100 and 5 tokens make 128 rows


STAGED = """
task: viggo
model: {name_or_path: llama2_7b, dtype: bfloat16}
data: {source: hub, max_length: 512}
train: {global_batch_size: 64}
deepspeed: zero3_7b
ray: {num_workers: 16, use_gpu: true, accelerator_type: A10G}
stages:
  - {name: sums, task: gsm8k, train: {num_epochs: 2}}
  - {name: forms, base: "@sums", train: {gradient_checkpointing: true}%s}
"""


def test_every_stage_is_planned_on_what_the_earlier_one_exports(tmp_path, capsys):
    recipe = tmp_path / "two.yaml"
    recipe.write_text(STAGED % "")
    code, found = planned(capsys, str(recipe))
    jsonschema.validate(found, SCHEMA)
    first, second = found["stages"]
    assert (code, found["fits"], first["recipe"], second["recipe"]) == (0, True, "two/sums", "two/forms")
    assert first["steps"] == 2 * 111  # 7,097 rows
    assert second["steps"] == 80
    assert found["steps"] == 222 + 80
    assert found["cost_usd"] == pytest.approx(first["cost_usd"] + second["cost_usd"])
    assert second["parameters"] >= first["parameters"]  # the task tokens of both
    assert cli.main(["plan", str(recipe)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("two, 2 stages: each of them fits; 302 steps")


def test_a_later_stage_that_cannot_fit_is_refused(tmp_path, capsys):
    recipe = tmp_path / "two.yaml"
    recipe.write_text(STAGED % ", ray: {num_workers: 2}")
    assert planned(capsys, str(recipe))[0] == 1
    assert cli.main(["train", str(recipe)]) == 2
    assert "planned: two/forms needs" in capsys.readouterr().err


def test_text_fits_one_screen_and_says_planned(capsys):
    assert cli.main(["plan", "viggo_llama2_13b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "planned, not measured" in lines[0]
    assert len(lines) <= 45
    assert max(len(line) for line in lines) <= 120


def test_what_does_not_fit_has_exit_code_1_and_a_way_out(capsys):
    code, found = planned(capsys, "viggo_llama2_70b", "deepspeed=zero3")
    assert code == 1
    assert "needs" in found["problems"][0]
    assert found["fastest_that_fits"]["deepspeed"].startswith("zero3_offload")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["viggo_llama2_7b", "--gpu", "A1000"], "GPU type 'A1000'"),
        (["viggo_llama2_7b", "model.name_or_path=nobody/nothing"], "--fetch"),
        (["viggo_llama2_7b", "data.source=hub", "task=tests/nowhere.py:TASK"], "tests/nowhere.py"),
        (["viggo_llama_7b"], "did you mean"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    assert cli.main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", [["train"], ["submit", "--address", "http://127.0.0.1:1"]])
def test_train_and_submit_refuse_what_cannot_fit(command, capsys):
    assert cli.main([command[0], "viggo_llama2_13b", "ray.num_workers=2", *command[1:]]) == 2
    message = capsys.readouterr().err
    assert "planned: needs" in message
    assert "ray.num_workers" in message or "deepspeed=" in message
    assert "--force" in message


def test_force_goes_past_the_plan(monkeypatch, capsys):
    import ray_jobs.submit

    seen = {}
    monkeypatch.setattr(ray_jobs.submit, "submit", lambda *_, **named: seen.update(named) or 0)
    assert cli.main(["submit", "viggo_llama2_13b", "ray.num_workers=2", "--address", "http://x", "--force"]) == 0
    assert seen["options"] == ["--force"]


def test_the_nodes_that_a_plan_takes_reach_the_job(monkeypatch):
    import ray_jobs.submit

    seen = {}
    monkeypatch.setattr(ray_jobs.submit, "submit", lambda *_, **named: seen.update(named) or 0)
    nodes = ["--host-memory", "64", "--gpus-per-node", "1", "--node-network-gbit", "10"]
    assert cli.main(["submit", "viggo_llama2_13b", "--address", "http://x", *nodes]) == 0
    assert seen["options"] == nodes
    assert cli.main(["submit", "viggo_llama2_13b", "--address", "http://x", "--host-memory", "4"]) == 2


def test_on_a_cluster_that_is_there_its_own_nodes_decide(monkeypatch, capsys):
    """One worker per host fits a host of the table, eight GPUs of a node with 64 GiB do not."""
    import ray

    from ray_jobs import cluster
    from ray_jobs import train as training

    rows = [{"GPU": 8.0, "accelerator_type:A10G": 1.0, "memory": 40.0 * 2**30, "object_store_memory": 24.0 * 2**30}]
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(cluster, "connected", contextlib.nullcontext)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "node", "Resources": row, "Alive": True} for row in rows])
    monkeypatch.setattr(cluster, "_host_memory", lambda nodes: 64 * 2**30)
    monkeypatch.setattr(training, "train", lambda *_, **__: Path("checkpoint"))
    run = ["train", "viggo_llama2_7b", "deepspeed=zero3_offload_7b", "--no-report"]
    assert cli.main(run) == 2
    assert "of host memory per node, Ray leaves 65.3 GB" in capsys.readouterr().err
    assert cli.main([*run, "--force"]) == 0
    assert cli.main([*run, "--host-memory", "768"]) == 0


@pytest.fixture
def machine(monkeypatch):
    """machine(gib): this one has two GPUs and so much memory; a list of the runs that went past the first gate."""
    from fulltune import device
    from fulltune.preflight import facts
    from ray_jobs.commands import train

    passed = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(device, "gpu_count", lambda: 2)
    monkeypatch.setattr(train, "train_and_report", lambda run, **named: passed.append(named["nodes"]) or 0)

    def has(gib):
        monkeypatch.setattr(facts, "host_memory", lambda: (gib * 2**30, 2**30))
        return passed

    return has


TWO = ["viggo_llama2_7b", "ray.num_workers=2", "ray.accelerator_type=RTX-4090"]
OFFLOADED = ["train", *TWO, "deepspeed=zero3_offload_7b"]


def test_a_local_start_is_judged_by_this_machine_and_not_by_the_instance_of_the_table(machine, capsys):
    from fulltune.plan.planner import Options

    passed = machine(256)
    assert cli.main(OFFLOADED) == 0
    assert passed == [Options()], "Ray's own nodes are asked afterwards"
    machine(64)
    assert cli.main(OFFLOADED) == 2
    assert "Ray leaves 65.3 GB of 68.7 GB" in capsys.readouterr().err
    assert cli.main([*OFFLOADED, "--host-memory", "256"]) == 0
    machine(256)
    assert cli.main([*OFFLOADED, "--host-memory", "64"]) == 2
    assert len(passed) == 2


def test_a_local_start_that_no_memory_of_the_machine_makes_fit_its_gpus_is_refused_before_ray(machine, capsys):
    passed = machine(4096)
    assert cli.main(["train", *TWO, "deepspeed=zero3"]) == 2
    assert "per GPU, an RTX-4090 has" in capsys.readouterr().err
    assert not passed


def test_a_job_goes_to_other_nodes_than_this_machine(machine, monkeypatch, capsys):
    import ray_jobs.submit

    machine(256)
    monkeypatch.setattr(ray_jobs.submit, "submit", lambda *_, **__: pytest.fail("was sent"))
    assert cli.main(["submit", *OFFLOADED[1:], "--address", "http://x"]) == 2
    assert "Ray leaves 65.3 GB" in capsys.readouterr().err


def test_nodes_are_planned_as_they_are_said_to_be(capsys):
    """The study's own cluster: 16 nodes with one A10G and 10 Gbit/s each."""
    usual = planned(capsys, "viggo_llama2_7b")[1]
    single = planned(capsys, "viggo_llama2_7b", "--gpus-per-node", "1", "--node-network-gbit", "10")[1]
    assert single["hours"] > 5 * usual["hours"]
    assert single["host_bytes"] == usual["host_bytes"] / 8
    assert "hpz" not in single["fastest_that_fits"]["deepspeed"]
    assert any("nodes: 1 GPU(s)" in line and "10 Gbit/s" in line for line in single["assumptions"])
    row = {found["gpu"]: found for found in single["same_on"]}
    assert row["A10G"]["hours"] == pytest.approx(single["hours"])
    assert row["H100"]["usd_per_gpu_hour"] == pytest.approx(6.88)
    four = planned(capsys, "viggo_llama2_7b", "--gpu", "RTX-4090", "ray.num_workers=4", "--gpus-per-node", "4")[1]
    apart = planned(capsys, "viggo_llama2_7b", "--gpu", "RTX-4090", "ray.num_workers=4")[1]
    assert four["hours"] < apart["hours"]
    assert four["host_bytes"] == 4 * apart["host_bytes"]


def test_a_price_in_the_recipe_is_the_plans(capsys):
    found = planned(capsys, "viggo_llama2_7b", "ray.usd_per_gpu_hour=0.5")[1]
    assert found["usd_per_gpu_hour"] == 0.5
    assert found["cost_usd"] == pytest.approx(16 * 0.5 * found["hours"])
    assert planned(capsys, "viggo_llama2_7b", "ray.usd_per_gpu_hour=0.5", "--price", "2")[1]["usd_per_gpu_hour"] == 2


def test_runs_on_cpus_and_unknown_sizes_are_not_refused(capsys):
    from fulltune import config
    from ray_jobs.plan import refuse_what_cannot_fit

    refuse_what_cannot_fit(config.load(recipes.path("demo")), say=print)
    unknown = config.load(recipes.path("viggo_llama2_7b"), ["model.name_or_path=nobody/nothing"])
    refuse_what_cannot_fit(unknown, say=print)
    assert "not planned" in capsys.readouterr().out
    small = config.load(recipes.path("viggo_llama2_7b"), ["ray.num_workers=1"])
    with pytest.raises(UserError, match="planned: needs"):
        refuse_what_cannot_fit(small, say=print)


def test_70b_is_planned_in_seconds():
    started = time.process_time(), time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-m", "ray_jobs.cli", "plan", "viggo_llama2_70b", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["parameters"] == 68_976_648_192 + 2 * 64 * 8192  # 5 tokens, padded to 64
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "deepspeed", "ray"}, "what makes it slow"
    assert time.perf_counter() - started[1] < 30  # about 2 s on a quiet machine: benchmarks/plan_time.py
