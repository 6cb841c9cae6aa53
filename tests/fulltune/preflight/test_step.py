"""The worst-case micro-batch, the order of a measured step, the memory it is held against, the time it foretells."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fulltune import config
from fulltune.comm import Workers
from fulltune.plan import hardware, sharding
from fulltune.plan.activations import Batch
from fulltune.plan.collectives import step_traffic
from fulltune.preflight import memory, step
from fulltune.preflight.estimate import Timing, communication_floor, estimate, slowest
from fulltune.preflight.memory import Use
from fulltune.preflight.network import Network
from fulltune.preflight.step import Measured

GIB = 2**30
RUN = config.resolve({"task": "viggo", "model": {"name_or_path": "m"}, "ray": {"name": "r"}}, origin="test")


@pytest.mark.parametrize(
    ("tokens", "longest", "lengths"),
    [(1000, 300, [300, 300, 300, 100]), (900, 300, [300] * 3), (300, 300, [300]), (301, 300, [300])],
)
def test_the_budget_is_filled_with_the_longest_allowed_examples(tokens, longest, lengths):
    rows = step.worst_batch(Batch(tokens, tokens // 2), longest, vocab_size=50)
    assert rows.cu_seq_lens.diff().tolist() == lengths
    assert rows.max_length == longest
    assert rows.input_ids.shape == (1, sum(lengths))
    assert int(rows.input_ids.max()) < 50
    assert abs(len(rows.keep) - sum(lengths) / 2) <= len(lengths)
    assert rows.targets.tolist() == rows.input_ids[0, rows.keep + 1].tolist()


def test_an_example_that_is_all_supervised_has_no_target_for_its_first_token():
    assert len(step.worst_batch(Batch(100, 100), 100, vocab_size=9).keep) == 99


class Recorder:
    """An engine that writes down what it is asked."""

    device = torch.device("cpu")
    scales_loss = False

    def __init__(self, norm=1.0):
        self.calls, self.norm = [], norm

    def accumulate(self, batch, *, step_tokens, last):
        self.calls.append((step_tokens, last))
        return torch.tensor(2.0 * len(batch.keep))

    def update(self, learning_rate):
        self.calls.append("update")
        return self.norm


def test_the_measured_step_has_a_later_micro_batch_and_follows_one_that_made_the_optimizers_states():
    engine, rows = Recorder(), step.worst_batch(Batch(100, 50), 100, vocab_size=9)
    found = step.take(engine, rows, RUN, Workers(), memory.start(on_gpu=False))
    assert engine.calls == [(100, False), (100, True), "update"] * 2
    assert found.loss == pytest.approx(2.0)
    assert (found.timing.tokens, found.timing.supervised, found.timing.squared_lengths) == (100, 50, 10_000)
    assert found.use.host > 2**20


MEASURED = Measured(Timing(1000, 500, 300_000, 1.0, 1.2, 0.1), Use(8 * GIB, 2 * GIB), 6.2, 1.5)


def test_a_step_without_numbers_is_a_no_go():
    assert step.check_step({0: MEASURED}, None, workers=1).ok
    assert step.check_step({0: replace(MEASURED, grad_norm=None)}, None, workers=1).ok, "float16's scaler at work"
    for broken in (replace(MEASURED, loss=math.nan), replace(MEASURED, grad_norm=math.inf)):
        assert not step.check_step({0: broken}, None, workers=1).ok


def test_a_step_that_not_all_workers_ended_is_a_no_go_with_its_cause():
    died = step.check_step({0: MEASURED}, "worker 1 in a worst-case step: CUDA out of memory", workers=2)
    assert not died.ok
    assert "worker 1" in died.got
    assert "train.micro_batch_tokens" in died.fix
    assert "1 of 2 workers" in step.check_step({0: MEASURED}, None, workers=2).got


@pytest.mark.parametrize(
    ("error", "out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, out):
    assert step.is_out_of_memory(error) is out


def test_the_fullest_gpu_is_held_against_the_smallest(worker):
    small = worker(1, device_memory=9 * GIB)
    room = memory.capacity([worker(), small], None)
    assert room == 9 * GIB
    used = {0: Use(8 * GIB, GIB), 1: Use(10 * GIB, GIB)}
    check = memory.check_device(used, 5 * GIB, room)
    assert not check.ok
    assert "on worker 1" in check.got
    assert "(measured +100%)" in check.got
    assert memory.check_device({0: used[0]}, 5 * GIB, room).ok


def test_a_node_counts_all_its_workers_and_a_limit_replaces_what_it_has(worker):
    pair = [worker(rank, host_memory=20 * GIB, host_available=17 * GIB) for rank in (0, 1)]
    used = {rank: Use(0, 9 * GIB) for rank in (0, 1)}
    assert memory.node_limit(pair, None) == 19 * GIB
    assert memory.check_host(pair, used, None, "").ok
    limited = memory.check_host(pair, used, 10 * GIB, "")
    assert (limited.ok, limited.name) == (False, "host memory")
    assert "--host-memory" in limited.wanted
    apart = [pair[0], replace(pair[1], node="node-1")]
    assert memory.check_host(apart, used, 10 * GIB, "").ok


def test_what_others_hold_on_a_node_is_not_there_for_the_workers(worker):
    busy = [worker(host_memory=20 * GIB, host_available=3 * GIB)]
    assert memory.node_limit(busy, None) == 4 * GIB
    assert memory.capacity([replace(busy[0], device_memory=None)], None) == 3 * GIB


def test_a_step_that_by_plan_cannot_fit_a_host_is_not_tried(worker):
    pair = [worker(rank) for rank in (0, 1)]
    assert memory.hopeless(pair, 3 * GIB, None) is None
    why = memory.hopeless(pair, 3 * GIB, 5 * GIB)
    assert why is not None
    assert "node-0" in why


def test_the_estimate_scales_the_slowest_workers_passes_to_the_datas_lengths(recipe, plan_of):
    run = recipe(micro_batch_tokens=1600)
    plan = plan_of(run)
    work = plan.work
    assert work.micro_batches == 2
    per_pass = work.tokens / work.steps / 2 / 2
    # the average micro-batch itself: the step is one pass of each kind and the update
    same = Timing(
        round(per_pass), round(work.supervised / work.steps / 4), round(work.squares / work.steps / 4), 2, 3, 1
    )
    found = estimate(plan.setup, work, same, workers=2, planned_hours=1.0, usd_per_hour=2.0)
    assert found.step_seconds == pytest.approx(6.0, rel=0.01)
    assert found.hours == pytest.approx(work.steps * 6 / 3600, rel=0.01)
    assert found.cost_usd == pytest.approx(found.hours * 2 * 2.0)
    assert slowest({0: same, 1: replace(same, update=9.0)}).update == 9.0
    assert (found.bound_by, found.scaled_seconds) == ("compute", found.step_seconds)


def test_a_step_takes_no_less_than_its_collectives(recipe, plan_of):
    """Gathers do not shrink with the tokens: short rows on a slow network are bound by them."""
    plan = plan_of(recipe(micro_batch_tokens=1600))
    setup = replace(plan.setup, sharding=sharding.ZERO_3)
    traffic = step_traffic(
        setup.shape, setup.sharding, workers=2, micro_batches=plan.work.micro_batches, dtype_bytes=setup.dtype_bytes
    )
    slow = Network(2, 2**24, all_reduce=4e6, all_gather=1e6, clock_skew=0.0)
    floor = communication_floor(setup, plan.work, workers=2, nodes=2, network=slow, gpu=None)
    assert floor == pytest.approx((traffic.reduce_scatter + traffic.all_gather) / 2 / 1e6)
    stage_2 = replace(setup, sharding=replace(sharding.ZERO_3, stage=2))
    reduced = communication_floor(stage_2, plan.work, workers=2, nodes=2, network=slow, gpu=None)
    whole = setup.dtype_bytes * setup.shape.parameters
    assert reduced == pytest.approx(plan.work.micro_batches * whole / 4e6 + whole / 2 / 1e6)
    quick = Timing(100_000, 50_000, 10_000_000, 0.02, 0.02, 0.01)
    found = estimate(setup, plan.work, quick, workers=2, planned_hours=1.0, usd_per_hour=None, floor=floor)
    assert found.step_seconds == found.communication_seconds == floor > found.scaled_seconds
    assert found.bound_by == "communication"


def test_without_a_measurement_the_planned_rates_are_the_floor(recipe, plan_of):
    plan = plan_of(recipe(micro_batch_tokens=1600))
    gpu = hardware.gpu("A10G")
    planned = communication_floor(plan.setup, plan.work, workers=16, nodes=2, network=None, gpu=gpu)
    slower = replace(gpu, network_bandwidth=gpu.network_bandwidth / 10)
    assert 0 < planned < communication_floor(plan.setup, plan.work, workers=16, nodes=2, network=None, gpu=slower)
    assert communication_floor(plan.setup, plan.work, workers=16, nodes=2, network=None, gpu=None) == 0.0
    assert communication_floor(plan.setup, plan.work, workers=1, nodes=1, network=None, gpu=gpu) == 0.0


def test_the_copies_of_a_save_count_on_every_node(worker):
    pair = [worker(rank, host_memory=20 * GIB, host_available=17 * GIB) for rank in (0, 1)]
    used = {rank: Use(0, 9 * GIB) for rank in (0, 1)}
    assert memory.check_host(pair, used, None, "", saving=GIB // 4).ok
    full = memory.check_host(pair, used, None, "", saving=GIB)
    assert not full.ok
    assert "2.1 GB more for the copies that a save makes" in full.got
