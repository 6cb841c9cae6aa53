"""Collectives are judged against the rates that the plan counts on, inside a node and between nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fulltune import architectures, config
from fulltune.plan import hardware, planner, workload
from fulltune.plan.planner import Options
from fulltune.preflight.network import Network, check_collectives


@pytest.mark.parametrize(("rate", "nodes", "ok"), [(24e9, 1, True), (22e9, 1, False), (5e9, 2, True), (4e9, 2, False)])
def test_the_bound_is_a_tenth_of_the_measured_rate(rate, nodes, ok):
    found = Network(workers=16, bytes=2**28, all_reduce=rate, all_gather=rate, clock_skew=0.0)
    assert check_collectives(found, hardware.gpu("A100-80"), nodes=nodes).ok == ok


def test_single_gpu_nodes_need_no_network_of_eight():
    """16 g5.4xlarge: 10 Gbit/s each, of which a ring reaches 1.1 GB/s."""
    tree = {"task": "viggo", "model": {"name_or_path": "llama2_7b"}, "deepspeed": "zero3", "train": {},
            "ray": {"num_workers": 16, "use_gpu": True, "accelerator_type": "A10G", "name": "test"}}  # fmt: skip
    lengths = workload.assumed(5103, 76.8, 30.0, 0.518, "a test")
    nodes = Options(gpus_per_node=1, host_memory=64 * 2**30)  # what Ray tells
    made = planner.plan(config.resolve(tree, origin="test"), architectures.load("llama2_7b"), lengths, nodes)
    found = Network(workers=16, bytes=2**28, all_reduce=1.1e9, all_gather=1.1e9, clock_skew=0.0)
    assert check_collectives(found, made.gpu, nodes=16).ok
    assert not check_collectives(replace(found, all_gather=0.1e9), made.gpu, nodes=16).ok


def test_without_a_known_gpu_there_is_no_bound():
    found = Network(workers=2, bytes=2**24, all_reduce=1e6, all_gather=1e6, clock_skew=0.0)
    assert check_collectives(found, None, nodes=2).ok
