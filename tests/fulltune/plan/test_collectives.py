"""Collective bytes: by hand, and against those counted in live DeepSpeed engines (two processes, gloo)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fulltune import architectures
from fulltune.plan import shape
from fulltune.plan.collectives import Traffic, step_traffic
from fulltune.plan.sharding import Sharding

LLAMA_2_7B = shape.of(architectures.load("llama2_7b"))
BF16 = 2 * 6_738_415_616
ROOT = Path(__file__).resolve().parents[3]


def traffic(stage, micro_batches=1, **sharding):
    return step_traffic(LLAMA_2_7B, Sharding(stage, **sharding), workers=8, micro_batches=micro_batches, dtype_bytes=2)


def test_one_worker_talks_to_nobody():
    alone = step_traffic(LLAMA_2_7B, Sharding(3), workers=1, micro_batches=4, dtype_bytes=2)
    assert alone.payload == 0


def test_stages_0_to_2():
    assert traffic(0, 4) == Traffic(all_reduce=BF16)
    assert traffic(1, 4) == Traffic(all_reduce=BF16, all_gather=BF16)
    assert traffic(2, 4) == Traffic(all_reduce=4 * BF16, all_gather=BF16)


def test_stage_3_gathers_twice_and_keeps_small_parameters():
    norms = 2 * 65 * 4096
    found = traffic(3, 4, persistence_threshold=10_000, prefetch_bucket=0, reuse_distance=0)
    assert found == Traffic(reduce_scatter=4 * BF16, all_gather=norms + 4 * 2 * (BF16 - norms))


def test_weights_that_are_soon_needed_again_are_gathered_once():
    found = step_traffic(LLAMA_2_7B, Sharding(3, persistence_threshold=0), workers=8, micro_batches=1, dtype_bytes=2)
    assert found.all_gather == 2 * BF16 - 2 * 500_000_000


def test_a_ring_sends_an_all_reduce_round_twice():
    assert Traffic(all_reduce=800).sent(8) == 2 * 700
    assert Traffic(reduce_scatter=800, all_gather=800).sent(8) == 2 * 700
    assert Traffic(all_gather=800).between_nodes(8, 4) == 700
    assert Traffic(all_gather=800, node_all_gather=800).between_nodes(2, 2) == 400


def test_an_all_reduce_between_two_nodes_goes_by_a_tree():
    assert Traffic(all_reduce=800).between_nodes(16, 2) == 800
    assert Traffic(all_reduce=800).between_nodes(32, 4) == 2 * 775


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.timeout(700)
def test_live_engines_exchange_what_the_plan_says(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.collective_bytes", "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=650
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    text = done.stdout.decode()
    found = json.loads(text[text.index("{\n") :])
    assert len(found) >= 10
    for name, row in found.items():
        counted, planned = sum(row["counted"].values()), sum(row["planned"].values())
        assert planned == pytest.approx(counted, rel=0.01), name
