"""What a cluster that is joined already tells a plan about its nodes."""

from __future__ import annotations

import pytest
import ray

from fulltune.config import RayConfig
from fulltune.plan.planner import Options
from ray_jobs import cluster

GIB = 2**30
RUN = RayConfig(use_gpu=True, accelerator_type="A10G", num_workers=4)


@pytest.fixture
def nodes(monkeypatch):
    """A head without GPUs, two nodes with four A10G, one with eight L4."""
    rows = [
        {"CPU": 8.0, "memory": 10.0 * GIB, "object_store_memory": 5.0 * GIB},
        *({"GPU": 4.0, "accelerator_type:A10G": 1.0, "memory": size * GIB, "object_store_memory": 50.0 * GIB}
          for size in (120.0, 130.0)),
        {"GPU": 8.0, "accelerator_type:L4": 1.0, "memory": 1.0 * GIB},
    ]  # fmt: skip
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Resources": row, "Alive": True} for row in rows])


@pytest.mark.usefixtures("nodes")
def test_nodes_of_the_runs_type_say_how_many_gpus_and_how_much_memory_they_have():
    assert cluster.as_found(RUN, Options()) == Options(gpus_per_node=4, host_memory=170 * GIB)
    given = Options(gpus_per_node=2, host_memory=7, node_network=1e9)
    assert cluster.as_found(RUN, given) == given


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("change", [{"use_gpu": False}, {"accelerator_type": "H100"}])
def test_nodes_that_are_not_there_say_nothing(change):
    assert cluster.as_found(RUN.model_copy(update=change), Options()) == Options()


def test_without_a_cluster_nothing_is_known():
    assert cluster.as_found(RUN, Options()) == Options()
