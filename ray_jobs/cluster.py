"""Starting or joining a Ray cluster, and asking it whether a run fits before anything else is spent."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fulltune.config import RayConfig, RunConfig
from fulltune.plan import hardware
from fulltune.plan.planner import Options
from fulltune.preflight import facts
from tasks.base import UserError

log = logging.getLogger(__name__)
LOCAL = "local"
ANSWER_S = 30.0  # for a node to start a process and say how much memory it has


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Joins the cluster of RAY_ADDRESS (set inside a submitted job), or starts one on this machine for the duration."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray gives its workers niceness 15, so that whatever else runs on a machine slows the training down
    os.environ.setdefault("RAY_worker_niceness", "0")
    address = os.environ.get("RAY_ADDRESS", LOCAL)
    started: dict[str, Any] = {"include_dashboard": True, "dashboard_host": "127.0.0.1"} if address == LOCAL else {}
    # Ray writes its access token readable by everybody: a private folder shuts the moment until it is protected
    _token_path().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **started)
    except (ConnectionError, ValueError) as error:
        raise UserError(
            got=f"RAY_ADDRESS={address}: {str(error).splitlines()[0]}",
            wanted="`auto` on a node of a running cluster, or host:port of its head (jobs take the http address)",
            fix="start one with `ray start --head`, or unset RAY_ADDRESS to use this machine",
        ) from None
    _protect_token()
    try:
        yield
    finally:
        ray.shutdown()


def _token_path() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))


def _protect_token() -> None:
    """An access token that others can read gives them the cluster: take their right away."""
    token = _token_path()
    if token.is_file() and token.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        with contextlib.suppress(PermissionError):
            token.chmod(0o600)


def worker_resources(config: RayConfig) -> dict[str, float]:
    """What Ray reserves for each training worker."""
    resources = {"CPU": config.cpus_per_worker}
    return resources | {"GPU": 1.0} if config.use_gpu else resources


def refuse_what_cannot_fit(config: RayConfig) -> None:
    """Ray would wait for ever for workers that no node, present or to come, can hold.

    Raises:
        UserError: with what the cluster has and what the run asks for.
    """
    needs = worker_resources(config)
    kind = _kind(config)
    here = needs | ({kind: 0.001} if kind else {})
    nodes = _nodes()
    places = sum(_places(node, here) for node in nodes)
    growth = _autoscaler_limits()
    possible = min((int(growth.get(key, 0) / need + 1e-9) for key, need in needs.items()), default=0) if growth else 0
    if config.min_workers <= max(places, possible):
        return
    has = ", ".join(f"{key} {sum(node.get(key, 0) for node in nodes):g}" for key in needs)
    wants = ", ".join(f"{key} {need:g}" for key, need in here.items())
    raise UserError(
        got=f"ray.num_workers={shown(config.num_workers)} with {wants} each",
        wanted=f"at most {max(places, possible)} such workers: the cluster has {has}"
        + (f" and may grow to {growth}" if growth else " and no autoscaler"),
        fix="lower ray.num_workers or ray.cpus_per_worker, or join a larger cluster through RAY_ADDRESS",
    )


def shown(num_workers: int | tuple[int, int]) -> str:
    """`2`, or `[1, 4]` for a range."""
    return str(num_workers) if isinstance(num_workers, int) else f"[{num_workers[0]}, {num_workers[1]}]"


def refuse_validation_without_room(run: RunConfig) -> None:
    """A validation beside training would wait for ever if the workers hold everything.

    Raises:
        UserError: with what is left over beside the workers.
    """
    growth = _autoscaler_limits()
    for key, wanted in {"CPU": run.validation.cpus, "GPU": run.validation.gpus}.items():
        has = max(sum(node.get(key, 0) for node in _nodes()), growth.get(key, 0))
        left = has - run.ray.max_workers * worker_resources(run.ray).get(key, 0.0)
        if run.validation.metric is not None and wanted > left + 1e-9:
            raise UserError(
                got=f"validation.{key.lower()}s={wanted:g} beside {run.ray.max_workers} workers",
                wanted=f"at most {max(left, 0):g} {key}: the cluster has {has:g} in all",
                fix=f"lower validation.{key.lower()}s (0 shares the workers' processors) or ray.num_workers",
            )


def places(needs: dict[str, float]) -> int:
    """How many workers with these needs the nodes hold that are there now."""
    return sum(_places(node, needs) for node in _nodes())


def as_found(config: RayConfig, nodes: Options) -> Options:
    """The options with what Ray's nodes have where the user said nothing; unchanged where none has the run's GPUs."""
    if not (ray.is_initialized() and config.use_gpu):
        return nodes
    kind = _kind(config)
    found = {
        node["NodeID"]: had
        for node in ray.nodes()
        if node["Alive"] and (had := node["Resources"]).get("GPU", 0) >= 1 and (kind is None or kind in had)
    }
    if not found:
        return nodes
    return replace(
        nodes,
        gpus_per_node=nodes.gpus_per_node or max(int(had["GPU"]) for had in found.values()),
        host_memory=nodes.host_memory or _host_memory(tuple(sorted(found))) or _reserved(found.values()) or None,
    )


def _host_memory(nodes: tuple[str, ...]) -> int | None:
    """The least that a process may take on any of these nodes, asked there; None where one does not answer."""
    try:
        return _asked(nodes)
    except (ray.exceptions.RayError, TimeoutError) as error:
        log.warning(
            "a node does not say how much memory it has (%s): Ray's own figures are taken", type(error).__name__
        )
        return None


@lru_cache(maxsize=16)
def _asked(nodes: tuple[str, ...]) -> int:
    asked = [_limit.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)) for node in nodes]
    return min(ray.get([task.remote() for task in asked], timeout=ANSWER_S))


@ray.remote(num_cpus=0, max_retries=0)
def _limit() -> int:
    return facts.host_memory()[0]


def _reserved(nodes: Iterable[dict[str, float]]) -> int:
    """What Ray set aside on the smallest node. By itself it takes `memory` and its object store out of what was free
    when it started; KubeRay gives the container's whole limit as `memory`, and a store of three tenths comes on top.
    """
    return min(_set_aside(had.get("memory", 0), had.get("object_store_memory", 0)) for had in nodes)


def _set_aside(memory: float, store: float) -> int:
    on_top = abs(store - 0.3 * memory) < 0.01 * memory
    return int(memory if on_top else memory + store)


def with_gpu(config: RayConfig, nodes: Options, *, certain: bool = False) -> Options:
    """`as_found`, with the type of GPU that the nodes have where neither recipe nor user names one.

    Args:
        certain: not where Ray has one label for several sizes, of which a plan takes the smallest.
    """
    found = as_found(config, nodes)
    if config.use_gpu and ray.is_initialized() and (found.gpu or config.accelerator_type) is None:
        kind = known_gpu()
        return found if certain and kind in hardware.SEVERAL_SIZES else replace(found, gpu=kind)
    return found


def known_gpu() -> str | None:
    """The GPU type of the cluster, where its nodes have one that the table of GPUs knows."""
    prefix = "accelerator_type:"
    types = {key.removeprefix(prefix) for key in ray.cluster_resources() if key.startswith(prefix)}
    known = {row.name for row in hardware.GPUS} | set(hardware.ALIASES) | set(hardware.RAY_LABELS.values())
    return next(iter(sorted(types & known)), None)


def free_cpus(config: RayConfig) -> float:
    """CPUs of the nodes that are there now, beyond those of the training workers."""
    return sum(node.get("CPU", 0) for node in _nodes()) - config.max_workers * config.cpus_per_worker


def _kind(config: RayConfig) -> str | None:
    """The resource by which Ray tells nodes with the run's type of GPU from others; None where any will do."""
    return (
        None if config.accelerator_type is None else f"accelerator_type:{hardware.ray_label(config.accelerator_type)}"
    )


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _places(node: dict[str, float], needs: dict[str, float]) -> int:
    """How many workers fit on a node; the margin absorbs binary fractions such as 0.1."""
    return min(int(node.get(key, 0) / need + 1e-9) for key, need in needs.items())


def _autoscaler_limits() -> dict[str, int]:
    """Largest amounts the autoscaler may reach; empty where there is none."""
    from ray._private.state import state

    try:
        return dict(state.get_max_resources_from_cluster_config() or {})
    except Exception as error:  # a private call: a Ray that changed it must not stop a run that fits
        log.warning("cannot read the autoscaler's limits: %s", error)
        return {}
