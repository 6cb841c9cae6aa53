"""The throughput model: the constants in the code are the fit, and the held-out half is predicted."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest

from fulltune.plan import hardware, published, rates, throughput
from fulltune.plan.activations import Batch
from fulltune.plan.collectives import Traffic
from fulltune.plan.memory import Setup
from fulltune.plan.sharding import Sharding


def test_the_constants_are_the_fit():
    assert throughput.fit(published.fitting_rows()) == throughput.EFFICIENCY


def test_held_out_rows_are_predicted():
    errors = {row.id: abs(throughput.error(row)) for row in published.test_rows()}
    assert len(errors) > 90
    assert median(errors.values()) <= 0.12
    assert not {name: error for name, error in errors.items() if error > 0.30}


def test_rows_that_came_later_are_predicted_by_constants_fitted_without_them():
    last = max(row.collected for row in published.rows())
    constants = throughput.fit(row for row in published.fitting_rows() if row.collected < last)
    later = [row for row in published.rows() if row.collected == last and published.excluded(row) is None]
    ratios = [throughput.predicted_tokens_per_s(row, constants[row.pair]) / row.tokens_per_s for row in later]
    assert len(ratios) > 50
    assert median(abs(ratio - 1) for ratio in ratios) <= 0.12
    assert max(abs(ratio - 1) for ratio in ratios) <= 0.30


def test_a_far_row_counts_in_a_fit():
    """Least squares of logarithms: two rows that are off by factors f and 1/f cancel."""
    near = row("foundry-a100-7b-s4096-g8")
    speed = throughput.predicted_tokens_per_s(near, 0.6)
    cases = [replace(near, tokens_per_s=speed * factor) for factor in (1.0, 1.0, 1.5)]
    (constant,) = throughput.fit(cases).values()
    assert constant > 0.65, "a median would stay at 0.6"
    pair = [replace(near, tokens_per_s=speed * factor) for factor in (1.25, 1 / 1.25)]
    assert throughput.fit(pair)[near.pair] == pytest.approx(0.6, abs=0.001)


def row(name):
    return next(row for row in published.rows() if row.id == name)


def test_a_slow_network_is_what_limits():
    fast = row("fms-a100-llama2-13b")
    slow = replace(fast, interconnect="rdma-10")
    assert throughput.predicted_tokens_per_s(slow, 0.6) < throughput.predicted_tokens_per_s(fast, 0.6) / 5


def test_communication_hides_behind_the_rest_until_it_is_longer():
    step = throughput.StepTime(products=1.0, memory=0.5, communication=1.4, update=0.1)
    assert step.total == pytest.approx(1.6)
    assert replace(step, communication=2.0).total == pytest.approx(2.1)


def test_what_nothing_hides_is_added():
    step = throughput.StepTime(products=1.0, memory=0.5, communication=1.4, update=0.1, exposed=0.3)
    assert step.total == pytest.approx(1.9)


def test_backward_gathers_are_exposed_where_they_are_fetched_late():
    post = row("foundry-a100-40-70b-s2048-g64")
    shape = published.model_shape(post.model, post.sequence_length)
    hidden, exposed = throughput._fsdp_traffic(post, shape, 1)
    assert (hidden.all_gather + exposed.all_gather, hidden.reduce_scatter + exposed.reduce_scatter) == (
        4 * shape.parameters,
        2 * shape.parameters,
    )
    assert exposed.all_gather == pytest.approx(2 * shape.parameters * (1 + 1 / 80))
    _, early = throughput._fsdp_traffic(replace(post, backward_prefetch=""), shape, 1)
    assert early.all_gather == pytest.approx(2 * shape.parameters / 80)


def test_attention_is_slower_than_products_on_hopper_only():
    for name, slower in (("foundry-h100-3b-s65536-g8", True), ("foundry-a100-3b-s65536-g8", False)):
        case = row(name)
        gpu = hardware.gpu(case.gpu)
        work = throughput._work(case, gpu)
        plain = work.flops.hardware / (0.5 * gpu.bf16_flops)
        assert (throughput.step_time(work, gpu, 0.5).products > 1.2 * plain) == slower


@pytest.mark.parametrize("name", ["foundry-h100-3b-s65536-g8", "foundry-a100-3b-s65536-g8"])
def test_float32_is_timed_at_its_own_peak_and_moves_twice_the_bytes(name):
    case = row(name)
    gpu = hardware.gpu(case.gpu)
    half = throughput._work(case, gpu)
    full = replace(half, dtype_bytes=4)
    steps = throughput.step_time(half, gpu, 0.5), throughput.step_time(full, gpu, 0.5)
    assert steps[1].products == pytest.approx(full.flops.hardware / (0.5 * gpu.fp32_flops))
    assert steps[1].products > 8 * steps[0].products
    assert steps[1].memory == pytest.approx(2 * steps[0].memory)
    assert steps[1].update == steps[0].update, "its states are float32 in any case"


def test_time_between_nodes_is_set_by_the_node_not_by_its_gpus():
    gpu = hardware.gpu("A100-80")
    traffic = Traffic(reduce_scatter=10**9, all_gather=2 * 10**9)
    rate = throughput.node_rate("rdma-400")
    assert rate == 50e9
    inside = throughput.communication_time(traffic, gpu, gpus=8, nodes=1, node_rate=rate)
    across = throughput.communication_time(traffic, gpu, gpus=32, nodes=4, node_rate=rate)
    assert inside == pytest.approx(3e9 * 7 / 8 / 230.8e9)
    assert across == pytest.approx(3e9 * 31 / 32 / 41.8e9)


def test_every_layer_has_its_own_collectives():
    case = row("titan-a100-llama2-13b-none")
    shape = published.model_shape(case.model, case.sequence_length)
    hidden, exposed = throughput._fsdp_traffic(case, shape, 1)
    calls = [sum(pair) for pair in zip(throughput._calls(case, hidden), throughput._calls(case, exposed), strict=True)]
    assert calls == pytest.approx([2 * shape.num_layers, shape.num_layers])


def test_collectives_cut_into_more_take_longer():
    gpu, traffic = hardware.gpu("A100-40"), Traffic(all_gather=2 * 10**9)
    whole, cut = (
        throughput.communication_time(traffic, gpu, gpus=64, nodes=8, node_rate=200e9, calls=calls)
        for calls in (0, 1000)
    )
    assert whole == pytest.approx(2e9 * 63 / 64 / 192e9)
    low_latency = 1000 * (14.0 + 56 * 1.9 + 7 * 4.0) / 1e6 + whole / 0.92
    assert cut == pytest.approx(low_latency)


def test_a_network_belongs_to_the_node():
    """Its GPUs share what the table has for it: a plan over 10 Gbit/s per node takes its bytes over 10 Gbit/s."""
    gpu = replace(hardware.gpu("A100-80"), network_bandwidth=10e9 / 8)
    setup = Setup(
        shape=published.model_shape("llama2-7b", 2048),
        sharding=Sharding(3, persistence_threshold=0, reuse_distance=0, prefetch_bucket=0),
        batch=Batch(tokens=2048, supervised=2048),
        workers=16,
        dtype_bytes=2,
        checkpointing=True,
        attention="flash",
        workers_per_node=8,
    )
    step = throughput.planned_step(
        setup, gpu, tokens=2**15, supervised_tokens=2**15, squared_lengths=2**26, micro_batches=1
    )
    crossing = 3 * 2 * setup.shape.parameters * 15 / 16
    assert step.communication == pytest.approx(crossing / rates.network(10e9 / 8))
