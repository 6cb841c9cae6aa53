"""Keeps one spare process per worker ready on every node, so that a restart after a failure does not wait for imports.

Ray starts new processes for the workers of an attempt, and importing torch, transformers and DeepSpeed is most of what
they do until the next optimizer step. Here each node's first worker asks its raylet, once training is under way, for as
many idle processes of the same runtime environment; they import (`load`, a set-up hook of the process) and wait. Ray
hands them out when it starts the workers again. They hold no device and cost host memory only.

The request is Ray's own (`PrestartWorkers`, 2.60), without a public function. A Ray that refuses it starts processes as
always: nothing else depends on it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

_HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
_DEVICE = "FULLTUNE_STANDBY_DEVICE"
# importing these asks no driver for devices: Ray chooses a spare's CUDA_VISIBLE_DEVICES only when it hands it out
_ANY_DEVICE = ("torch", "ray.train.torch", "transformers.modeling_utils", "fulltune.session")
_CPU_ONLY = ("deepspeed", "fulltune.engine")
_MODULES = ("node_manager_pb2", "node_manager_pb2_grpc", "common_pb2", "runtime_environment_pb2")
_DELAY_S = 15.0  # spares import after the workers themselves, who have the same cores
_KEEP_S = 30 * 24 * 3600
_WAIT_S = 10.0

logger = logging.getLogger(__name__)


def environment(*, use_gpu: bool) -> dict[str, str]:
    """Environment variables that make a worker process of Ray import before it is given work."""
    if _HOOK in os.environ:  # the job brings a hook of its own
        return {}
    return {_HOOK: f"{__name__}.load", _DEVICE: "gpu" if use_gpu else "cpu"}


def load() -> None:
    """Imports what a training worker needs. Never raises: Ray ends a process whose hook fails."""
    modules = _ANY_DEVICE + (_CPU_ONLY if os.environ.get(_DEVICE) == "cpu" else ())
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # the worker itself will meet it again, and say so
            logger.debug("standby: %s: %s", module, error)


@contextlib.contextmanager
def kept(processes: int, *, after_s: float = _DELAY_S) -> Iterator[None]:
    """Asks for so many spare processes on this node, a moment after the block was entered."""
    if not processes:
        yield
        return
    timer = threading.Timer(after_s, _ask, args=(processes,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _ask(processes: int) -> None:
    """Never raises: a run without spares is a run."""
    try:
        request(processes)
    except Exception as error:
        logger.warning("no spare worker processes (%s: %s): a restart will take longer", type(error).__name__, error)


def request(processes: int) -> None:
    """Asks this node's raylet for idle processes with the runtime environment of the process that calls.

    Raises:
        grpc.RpcError, ImportError, AttributeError: this Ray does not know the request, or refuses it.
    """
    import ray
    from google.protobuf import json_format
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.utils import get_runtime_env_info

    messages, services, common, environments = map(_generated, _MODULES)
    context = ray.get_runtime_context()
    node = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    info = environments.RuntimeEnvInfo()
    json_format.Parse(get_runtime_env_info(context.runtime_env, serialize=True), info)
    info.serialized_runtime_env = context.get_runtime_env_string()  # to the letter: spares are matched by its hash
    wanted = messages.PrestartWorkersRequest(
        language=common.Language.PYTHON,
        job_id=bytes.fromhex(context.get_job_id()),
        runtime_env_info=info,
        keep_alive_duration_secs=_KEEP_S,
        num_workers=processes,
    )
    channel = init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
    with contextlib.closing(channel):
        services.NodeManagerServiceStub(channel).PrestartWorkers(wanted, timeout=_WAIT_S)


def _generated(module: str) -> Any:
    """A module of Ray's that the protocol buffer compiler wrote: without types."""
    return importlib.import_module(f"ray.core.generated.{module}")
