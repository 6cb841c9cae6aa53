"""From findings to go or no-go: who is blamed, what the plan's word is worth, and what people and programs read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fulltune.preflight import facts, micro_batch, report, verdict
from fulltune.preflight.check import Check, is_go
from fulltune.preflight.estimate import Timing
from fulltune.preflight.memory import Use
from fulltune.preflight.network import Network
from fulltune.preflight.step import Measured
from fulltune.preflight.storage import Probe

GIB = 2**30
MB = 10**6


@pytest.fixture
def told(worker):
    """What two healthy CPU workers tell."""
    versions = facts.versions()
    own = [worker(rank, device="Xeon", device_memory=None, driver=None, versions=versions) for rank in (0, 1)]
    measured = Measured(Timing(1024, 512, 300_000, 0.5, 0.6, 0.1), Use(40 * MB, GIB), 6.2, 1.5)
    return {
        "facts": dict(enumerate(own)),
        "storage": {rank: Probe(rank, None, True, 10 * MB, 0.1, 0.1, 10**12) for rank in (0, 1)},
        "object store": {0: None, 1: None},
        "network": dict.fromkeys((0, 1), Network(2, 16 * MB, 1e8, 1e8, 0.001)),
        "step": dict.fromkeys((0, 1), measured),
    }


@pytest.fixture
def judge(recipe, plan_of, lengths):
    """judge(told, ...): the outcome for a recipe of 1,600 tokens per micro-batch."""

    def of(told, doing=None, error=None, host_limit=None, plan=None, smaller=None, auto=False):
        run = recipe(micro_batch_tokens=1600)
        plan = plan or plan_of(run)
        size = next(size for size in micro_batch.sizes(run, plan.setup, lengths) if size.tokens == 1600)
        answers = replace(verdict.answers(told, doing or {}, error, size), smaller=smaller)
        first = [Check("storage", True, "can be written")]
        return verdict.of(run, first, [], answers, plan, lengths, host_limit=host_limit, usd_per_hour=None, auto=auto)

    return of


def stopped(found):
    return [check.name for check in found.checks if not check.ok]


def test_nothing_checked_is_no_go():
    assert not is_go([])


def test_two_healthy_workers_are_a_go_and_save_a_pass(judge, told):
    found = judge(told | {"larger step": dict.fromkeys((0, 1), (4096, told["step"][0]))})
    assert found.go
    assert found.estimate.steps == found.plan.work.steps
    assert (found.choice.override, found.choice.tried) == ("train.micro_batch_tokens=4096", True)
    text = report.text(found)
    assert text.endswith("\ngo")
    assert "use it: train.micro_batch_tokens=4096" in text
    content = json.loads(json.dumps(report.as_json(found)))
    assert content["go"] is True
    assert content["micro_batch"]["chosen"] == 4096
    assert [row["rank"] for row in content["step"]] == [0, 1]


def test_a_no_go_shows_got_wanted_and_fix_and_is_named_in_the_last_line(judge, told):
    found = judge(told, host_limit=GIB)
    assert stopped(found) == ["host memory"]
    lines = report.text(found).splitlines()
    assert lines[-1] == "no-go: host memory"
    below = lines[lines.index("  NO-GO  host memory") + 1 :]
    assert [line.split()[0] for line in below if ": " in line][:3] == ["got:", "wanted:", "fix:"]


def test_the_worker_without_memory_is_blamed_and_not_the_one_it_left_waiting(judge, told):
    del told["step"]
    told["error"] = {
        0: {"text": "RuntimeError: Connection closed by peer", "out_of_memory": False},
        1: {"text": "OutOfMemoryError: CUDA out of memory", "out_of_memory": True},
    }
    found = judge(told, doing={0: "a worst-case step of 1,600 tokens", 1: "a worst-case step of 1,600 tokens"})
    assert stopped(found) == ["worst-case step"]
    (check,) = [check for check in found.checks if not check.ok]
    assert check.got.startswith("worker 1 in a worst-case step of 1,600 tokens: OutOfMemoryError")
    assert found.answers.out_of_memory
    assert found.answers.entered_step
    assert (found.choice, found.estimate) == (None, None)


def test_a_smaller_micro_batch_that_ended_well_is_the_fix(judge, told, recipe, plan_of, lengths):
    run = recipe(micro_batch_tokens=1600)
    measured = told.pop("step")
    size = micro_batch.sizes(run, plan_of(run).setup, lengths)[0]
    answers = verdict.answers(told, {0: "a step"}, "worker died: out of memory", size)
    answers = replace(answers, smaller=(replace(size, tokens=512), measured))
    found = verdict.of(run, [], [], answers, plan_of(run), lengths, host_limit=None, usd_per_hour=None)
    (fix,) = [check.fix for check in found.checks if check.name == "worst-case step"]
    assert fix.startswith("train.micro_batch_tokens=512: a worst-case step with it ended well")


def test_an_open_micro_batch_becomes_the_smaller_one_that_ended_well(judge, told, recipe, plan_of, lengths):
    measured = told.pop("step")
    sizes = micro_batch.sizes(recipe(micro_batch_tokens=1600), plan_of(recipe()).setup, lengths)
    half = next(size for size in sizes if size.tokens == 512)
    found = judge(told, {0: "a step"}, "worker died: out of memory", smaller=(half, measured), auto=True)
    assert found.go
    assert (found.choice.chosen, found.choice.tried, found.choice.override) == (512, True, None)
    assert found.estimate is not None
    (check,) = [check for check in found.checks if check.name == "worst-case step"]
    assert "1,600 tokens, the plan's, ran out of memory" in check.got
    assert "train takes it by itself (auto)" in report.text(found)


@pytest.mark.parametrize("wrong", [{"use": Use(2**60, GIB)}, {"loss": float("nan")}])
def test_a_larger_step_that_took_too_much_or_lost_its_loss_is_not_chosen(judge, told, wrong):
    larger = replace(told["step"][0], **wrong)
    found = judge(told | {"larger step": dict.fromkeys((0, 1), (4096, larger))})
    assert found.go
    assert (found.choice.chosen, found.choice.override) == (1600, None)


def test_a_worker_that_was_killed_is_told_by_where_they_were(judge, told):
    del told["step"]
    found = judge(told, doing={0: "loading the model", 1: "a worst-case step"}, error="The worker died: OOM")
    (check,) = [check for check in found.checks if check.name == "worst-case step"]
    assert not check.ok
    assert "worker 1 was in a worst-case step" in check.got
    assert found.answers.out_of_memory


def test_a_larger_step_that_fails_takes_nothing_from_the_recipes_own(judge, told):
    told["error"] = {1: {"text": "OutOfMemoryError: CUDA out of memory", "out_of_memory": True}}
    found = judge(told)
    assert found.go
    assert (found.choice.chosen, found.choice.override) == (1600, None)


def test_workers_that_never_start_are_a_no_go(judge):
    found = judge({}, error="nothing new for 900 s: no worker started")
    assert stopped(found) == ["workers"]
    assert not found.go


def test_collectives_that_do_not_end_are_named(judge, told):
    told = {stage: told[stage] for stage in ("facts", "storage", "object store")}
    found = judge(told, doing={0: "the collectives", 1: "the collectives"}, error="nothing new for 900 s")
    assert "collectives" in stopped(found)
    assert "worst-case step" in stopped(found)


def test_the_measured_step_overrules_a_plan_that_says_no(judge, told, recipe, plan_of):
    plan = replace(plan_of(recipe(micro_batch_tokens=1600)), problems=("needs 9 GB per GPU, there are 8 GB",))
    assert judge(told, plan=plan).go
    del told["step"]
    assert {"worst-case step", "plan"} <= set(stopped(judge(told, error="died", plan=plan)))


def test_the_cause_of_a_failed_group_is_one_line():
    class Failed(Exception):
        worker_failures = {1: ValueError("first\n  File x\nActorDiedError: The actor died because of memory")}

    assert verdict.cause(Failed("Training failed")) == "ActorDiedError: The actor died because of memory"
    assert verdict.cause(ValueError("only this")) == "only this"


def test_a_run_that_communication_bounds_says_so(judge, told, recipe, plan_of):
    plan = plan_of(recipe(micro_batch_tokens=1600))
    slow = {"network": dict.fromkeys((0, 1), Network(2, 16 * MB, 1e4, 1e4, 0.001))}
    found = judge(told | slow, plan=plan)
    assert found.estimate.bound_by == "communication"
    assert "bound by communication at the measured rates" in " ".join(report.text(found).split())
    assert "from the measured step" in report.text(judge(told, plan=plan))


def test_a_node_that_could_step_but_not_save_is_a_no_go(judge, told, recipe, plan_of):
    plan = plan_of(recipe(micro_batch_tokens=1600))
    much = replace(plan, memory=replace(plan.memory, host_saving=plan.memory.host + 200 * GIB))
    assert stopped(judge(told, plan=plan)) == []
    assert stopped(judge(told, plan=much)) == ["host memory"]
