"""What a cluster that is joined already tells a plan about its nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray

from fulltune import config
from fulltune.config import RayConfig
from fulltune.plan.planner import Options
from ray_jobs import cluster
from ray_jobs.train import trainer_of
from tasks.base import UserError

GIB = 2**30
RECIPE = Path(cluster.__file__).parent / "recipes" / "viggo_llama2_7b.yaml"
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
    joined(monkeypatch, rows)


def joined(monkeypatch, rows, limits=None):
    """A cluster of nodes with these resources, which answer with these limits, or not at all."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    nodes = [{"NodeID": f"node-{number}", "Resources": row, "Alive": True} for number, row in enumerate(rows)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    answers = None if limits is None else lambda asked: min(limits[node] for node in asked)
    monkeypatch.setattr(cluster, "_host_memory", answers or (lambda _: None))


@pytest.mark.usefixtures("nodes")
def test_nodes_of_the_runs_type_say_how_many_gpus_and_how_much_memory_they_have():
    assert cluster.as_found(RUN, Options()) == Options(gpus_per_node=4, host_memory=170 * GIB)
    given = Options(gpus_per_node=2, host_memory=7, node_network=1e9)
    assert cluster.as_found(RUN, given) == given


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("change", [{"use_gpu": False}, {"accelerator_type": "H100"}])
def test_nodes_that_are_not_there_say_nothing(change):
    assert cluster.as_found(RUN.model_copy(update=change), Options()) == Options()


KUBERAY = {"GPU": 8.0, "accelerator_type:A10G": 1.0, "memory": 512.0 * GIB, "object_store_memory": 153.6 * GIB}


def test_nodes_are_asked_how_much_memory_a_process_may_take(monkeypatch):
    """A container of 512 GiB: KubeRay tells Ray all of it as `memory`, and Ray adds its object store to that."""
    joined(monkeypatch, [KUBERAY, KUBERAY, {"CPU": 4.0}], {"node-0": 512 * GIB, "node-1": 500 * GIB})
    assert cluster.as_found(RUN, Options()).host_memory == 500 * GIB


def test_a_node_that_does_not_answer_is_asked_again(monkeypatch):
    """A cold environment may take longer than the answer is waited for."""
    asked = []

    def ask(_):
        asked.append(1)
        if len(asked) == 1:
            raise ray.exceptions.GetTimeoutError
        return 7 * GIB

    monkeypatch.setattr(cluster, "_asked", ask)
    assert cluster._host_memory(("node",)) is None
    assert cluster._host_memory(("node",)) == 7 * GIB


def test_a_node_that_does_not_answer_has_no_more_than_its_container(monkeypatch):
    joined(monkeypatch, [KUBERAY])
    assert cluster.as_found(RUN, Options()).host_memory == 512 * GIB


A100S = [{"CPU": 96.0, "GPU": 8.0, "accelerator_type:A100": 1.0, "memory": 1000.0 * GIB}]


@pytest.mark.parametrize("name", ["A100", "A100-40", "A100-80", "a100-80"])
def test_a_type_whose_memory_the_recipe_names_is_found_by_rays_label(monkeypatch, name):
    joined(monkeypatch, A100S)
    monkeypatch.setattr(cluster, "_autoscaler_limits", dict)
    run = RUN.model_copy(update={"accelerator_type": name, "num_workers": 8})
    cluster.refuse_what_cannot_fit(run)
    assert cluster.as_found(run, Options()).gpus_per_node == 8
    with pytest.raises(UserError, match=r"accelerator_type:A100 0\.001"):
        cluster.refuse_what_cannot_fit(run.model_copy(update={"num_workers": 9}))


@pytest.mark.parametrize(
    ("name", "label"), [("A100-80", "A100"), ("RTX-4090", "GeForce-RTX-4090"), ("A10G", "A10G"), (None, None)]
)
def test_workers_are_placed_by_rays_label_and_planned_by_the_recipes_name(monkeypatch, tmp_path, name, label):
    import ray.train.torch

    made = {}
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", lambda *_, **named: made.update(named))
    kind = f"ray.accelerator_type={name or 'null'}"
    run = config.load(RECIPE, [kind, f"ray.storage_path={tmp_path}"])
    trainer_of(run, lambda payload: payload, {})
    assert made["scaling_config"].accelerator_type == label
    assert run.ray.accelerator_type == name


def test_without_a_cluster_nothing_is_known():
    assert cluster.as_found(RUN, Options()) == Options()


@pytest.mark.slow
def test_a_live_node_is_asked():
    """In a process of its own: one Ray per process."""
    code = """
import ray
ray.init(num_cpus=1, num_gpus=2, include_dashboard=False)
from fulltune.config import RayConfig
from fulltune.plan.planner import Options
from fulltune.preflight import facts
from ray_jobs import cluster
found = cluster.as_found(RayConfig(use_gpu=True, num_workers=2), Options())
assert (found.gpus_per_node, found.host_memory) == (2, facts.host_memory()[0]), found
"""
    root = Path(cluster.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=180)
