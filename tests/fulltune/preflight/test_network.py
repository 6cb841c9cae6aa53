"""Collectives are judged against the rates that the plan counts on, inside a node and between nodes."""

from __future__ import annotations

import pytest

from fulltune.plan import hardware
from fulltune.preflight.network import Network, check_collectives


@pytest.mark.parametrize(("rate", "nodes", "ok"), [(24e9, 1, True), (22e9, 1, False), (5e9, 2, True), (4e9, 2, False)])
def test_the_bound_is_a_tenth_of_the_measured_rate(rate, nodes, ok):
    found = Network(workers=16, bytes=2**28, all_reduce=rate, all_gather=rate, clock_skew=0.0)
    assert check_collectives(found, hardware.gpu("A100-80"), nodes=nodes).ok == ok


def test_without_a_known_gpu_there_is_no_bound():
    found = Network(workers=2, bytes=2**24, all_reduce=1e6, all_gather=1e6, clock_skew=0.0)
    assert check_collectives(found, None, nodes=2).ok
