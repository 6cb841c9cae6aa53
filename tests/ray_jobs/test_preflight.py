"""`fulltune preflight` on two CPU workers: go; and no-go by name, each reason brought about for itself."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from types import SimpleNamespace

import pytest

from fulltune import config
from fulltune.preflight import storage
from ray_jobs import auto, cli, cluster, preflight, recipes, settled
from ray_jobs.preflight import Options
from ray_jobs.preflight_worker import Findings
from tasks.base import UserError

# the demo, shrunk; a budget of one example, so that a larger one saves passes
SHRUNK = (
    "model.config.hidden_size=32",
    "model.config.intermediate_size=64",
    "model.config.num_hidden_layers=2",
    "model.tokenizer.vocab_size=400",
    "data.limit=300",
    "validation.limit=50",
    "train.micro_batch_tokens=256",
    "ray.cpus_per_worker=0.5",
)
LLAMA = "model={name_or_path: meta-llama/Llama-2-7b-hf}"


@pytest.fixture
def no_token(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def full_disk(monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda _: 10_000)


@pytest.fixture
def ground():
    """ground(*overrides): the part before the workers start."""

    def look(*overrides, seconds=120):
        run, found = config.load(recipes.path("demo"), [*SHRUNK, *overrides]), preflight._Ground()
        with contextlib.ExitStack() as stack:
            preflight._look(found, run, Options(timeout_s=seconds), stack, say=print)
        return found

    return look


def test_the_free_space_that_is_asked_for_is_the_plans_disk(ground, no_token, tmp_path, monkeypatch):
    """With a metric: two checkpoints and the validation's export more than without."""
    asked = []
    monkeypatch.setattr(storage, "check_space", lambda free, needed, what, where: asked.append((needed, what)))
    plans = [
        ground(f"ray.storage_path={tmp_path / metric}", f"validation.metric={metric}").plan
        for metric in ("null", "exact_match")
    ]
    assert [needed for needed, _ in asked] == [plan.disk for plan in plans]
    assert plans[1].disk == plans[0].disk + 2 * plans[0].checkpoint + plans[1].validation_export
    assert "while one is validated" in asked[1][1]
    assert "while one is validated" not in asked[0][1]


def stopped(checks):
    return [check.name for check in checks if not check.ok]


def test_ground_that_is_good_gives_a_prepared_model_and_a_plan(ground, tmp_path):
    found = ground(f"ray.storage_path={tmp_path}")
    assert stopped(found.checks) == []
    assert (found.model / "config.json").is_file()
    assert found.plan.fits
    assert not (tmp_path / "demo" / storage.MARK).exists()


def test_room_is_wanted_for_the_model_that_is_prepared_first(ground, tmp_path, monkeypatch):
    found = ground(f"ray.storage_path={tmp_path}")
    plan, run = found.plan, found.plan.config
    without = plan.disk - plan.starting_model
    monkeypatch.setattr(storage, "free_bytes", lambda _: without)
    assert preflight._space(run, plan).ok, "prepared already"
    shutil.rmtree(tmp_path / "cache")
    check = preflight._space(run, plan)
    assert not check.ok
    assert "for the prepared model" in check.wanted
    monkeypatch.setattr(storage, "free_bytes", lambda _: plan.disk)
    assert preflight._space(run, plan).ok


def test_storage_that_cannot_be_written_is_named(ground, tmp_path):
    (tmp_path / "file").write_text("")
    found = ground(f"ray.storage_path={tmp_path}/file")
    assert stopped(found.checks) == ["storage"]
    assert found.mark is None
    assert found.model is None


def test_a_mount_that_hangs_is_given_up(ground, tmp_path, monkeypatch):
    hanging = threading.Event()
    monkeypatch.setattr(storage, "marked", lambda _: hanging.wait(60))
    monkeypatch.setattr(preflight, "known", refuse)
    begun = time.monotonic()
    found = ground(f"ray.storage_path={tmp_path}", seconds=0.5)
    hanging.set()
    assert time.monotonic() - begun < 30
    assert found.mark is None
    assert "storage" in stopped(found.checks)
    assert "nothing within" in found.checks[0].got


def test_storage_that_hangs_at_the_end_does_not_keep_the_verdict(ground, tmp_path, monkeypatch):
    hanging = threading.Event()

    @contextlib.contextmanager
    def marked(_):
        yield "mark"
        hanging.wait(60)

    monkeypatch.setattr(storage, "marked", marked)
    monkeypatch.setattr(preflight, "known", refuse)
    monkeypatch.setattr(preflight, "CLEAN_UP_S", 0.2)
    begun = time.monotonic()
    assert ground(f"ray.storage_path={tmp_path}").mark == "mark"
    assert time.monotonic() - begun < 30
    hanging.set()


def refuse(*_, **__):
    raise UserError(got="no data", wanted="data", fix="get some")


def test_a_full_disk_is_named_and_not_filled_further(ground, tmp_path, full_disk):
    found = ground(f"ray.storage_path={tmp_path}")
    assert stopped(found.checks) == ["free space"]
    assert "10.0" not in found.checks[-1].wanted
    assert found.model is None
    assert not (tmp_path / "cache").exists()


def test_a_missing_token_is_named(ground, tmp_path, no_token, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda _: 10**15)
    found = ground(f"ray.storage_path={tmp_path}", LLAMA)
    assert stopped(found.checks) == ["hub token"]
    assert found.model is None


def test_data_that_is_not_there_is_named(ground, tmp_path):
    found = ground(f"ray.storage_path={tmp_path}", "data.source=no/such.csv")
    assert stopped(found.checks) == ["model and data"]
    assert "no/such.csv" in found.checks[-1].got


def test_a_wait_is_bounded():
    assert preflight.bounded(lambda: 7, 5) == 7
    with pytest.raises(ZeroDivisionError):
        preflight.bounded(lambda: 1 / 0, 5)
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        preflight.bounded(lambda: time.sleep(30), 0.2)
    assert time.monotonic() - begun < 5


def test_workers_that_stay_in_a_stage_are_given_up(monkeypatch):
    findings = Findings(doing={0: "the collectives", 1: "the collectives"})
    ledger = SimpleNamespace(read=SimpleNamespace(remote=lambda: findings))
    stub = SimpleNamespace(get=lambda value, timeout: value, exceptions=SimpleNamespace(GetTimeoutError=TimeoutError))
    monkeypatch.setattr(preflight, "ray", stub)
    error = preflight._fit(SimpleNamespace(fit=lambda: time.sleep(30)), ledger, 1.0, say=print)
    assert error is not None
    assert "worker 1 was in the collectives" in error


@pytest.fixture(scope="module")
def two_workers():
    with cluster.connected():
        yield


@pytest.fixture
def ask(two_workers, tmp_path, capsys):
    """ask(*arguments): exit code and JSON of a preflight of the shrunk demo."""

    def run(*arguments):
        given = list(SHRUNK) + ([] if any("storage_path" in text for text in arguments) else [storing])
        code = cli.main(["preflight", "demo", *given, *arguments, "--timeout-s", "200", "--json"])
        captured = capsys.readouterr()
        print(captured.err, captured.out)
        return code, json.loads(captured.out)

    storing = f"ray.storage_path={tmp_path}"
    return run


def named(found):
    return [check["name"] for check in found["checks"] if not check["ok"]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_are_a_go(ask, tmp_path):
    code, found = ask()
    assert code == 0, found["checks"]
    assert found["go"] is True
    assert named(found) == []
    seen = {check["name"] for check in found["checks"]}
    assert seen >= {"storage", "model and data", "free space", "cluster", "workers", "versions", "devices",
                    "shared memory", "open files", "storage on workers", "collectives", "clocks", "worst-case step",
                    "host memory", "plan"}  # fmt: skip
    assert [facts["rank"] for facts in found["workers"]] == [0, 1]
    assert found["network"]["workers"] == 2
    assert min(found["network"]["all_reduce"], found["network"]["all_gather"]) > 1e6
    for row in found["step"]:
        assert row["timing"]["tokens"] == 256
        assert row["use"]["device"] > 0
        assert 4 < row["loss"] < 8, "a random model over some 400 tokens: about ln 448 = 6.1"
    # 32 examples of some 60 tokens a step: 256 tokens at a time take four passes, 1,024 one
    choice = found["micro_batch"]
    assert choice["recipe"] == 256
    assert choice["chosen"] == choice["planned"] > 256
    assert choice["tried"] is True
    assert choice["override"] == f"train.micro_batch_tokens={choice['chosen']}"
    assert found["estimate"]["hours"] > 0
    assert json.loads((tmp_path / "demo" / settled.PREFLIGHT).read_text()) == found
    assert not (tmp_path / "demo" / storage.MARK).exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_left_to_auto_is_tried_and_the_training_takes_it(ask, tmp_path):
    code, found = ask("train.micro_batch_tokens=auto", "deepspeed=auto")
    assert code == 0, found["checks"]
    choice = found["micro_batch"]
    assert choice["override"] is None
    assert choice["made_for"]["deepspeed"] == "zero2"
    assert choice["recipe"] == choice["planned"], "the plan's"
    assert {row["timing"]["tokens"] for row in found["step"]} == {choice["recipe"]}
    choice["chosen"] //= 2  # as if it had measured more than was planned
    (tmp_path / "demo" / settled.PREFLIGHT).write_text(json.dumps(found))
    overrides = [*SHRUNK, "train.micro_batch_tokens=auto", "deepspeed=auto", f"ray.storage_path={tmp_path}"]
    run = auto.decided(config.load(recipes.path("demo"), overrides), fetch=False, say=print)
    assert (run.deepspeed, run.train.micro_batch_tokens) == ("zero2", choice["chosen"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_too_small_memory_limit_is_a_no_go(ask):
    code, found = ask("--host-memory", "0.25")
    assert code == 1
    assert "host memory" in named(found)
    assert "worst-case step" not in named(found), "it was taken, and measured"
    (check,) = [check for check in found["checks"] if check["name"] == "host memory"]
    assert "--host-memory" in check["wanted"]
    assert check["fix"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_missing_token_and_a_full_disk_are_both_named_in_one_run(ask, no_token, full_disk):
    code, found = ask(LLAMA)
    assert code == 1
    assert {"hub token", "free space"} <= set(named(found))
    assert "worst-case step" not in named(found), "it was not taken, so it has not failed"
    assert found["network"] is not None, "what needs no model was looked at all the same"
    assert found["step"] == []
    assert found["left_out"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_storage_that_cannot_be_written_is_a_no_go(ask, tmp_path):
    (tmp_path / "file").write_text("")
    code, found = ask(f"ray.storage_path={tmp_path}/file")
    assert (code, named(found)) == (1, ["storage"])


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.timeout(600)
def test_a_step_that_fails_on_the_workers_is_a_no_go_with_their_error(ask):
    code, found = ask("train.lr_multipliers={'*nothing*': 2.0}")
    assert code == 1
    assert "worst-case step" in named(found)
    (check,) = [check for check in found["checks"] if check["name"] == "worst-case step"]
    assert "*nothing*" in check["got"]
    assert "loading the model" in check["got"]
