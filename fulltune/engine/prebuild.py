"""DeepSpeed's compiled ops: built here as children of `fulltune.setup`, loaded here by the workers.

Whenever a CPU process initialises distributed training, `deepspeed.comm` loads the op `deepspeed_shm_comm` through
torch's just-in-time build: a lock file without a bound, ninja and a compiler, even when all is built; without them the
process fails. A worker therefore calls `attach()` before `deepspeed.init_distributed`: either the finished library is
handed to DeepSpeed directly, or DeepSpeed is told that the op is not to be had. Neither path builds, locks or waits.

The op carries DeepSpeed's `inference_all_reduce` only, and only where its launcher's LOCAL_SIZE says that all workers
share one host. Training's collectives go over gloo either way.

Run (as `fulltune.setup` does): TORCH_EXTENSIONS_DIR=<folder> python -m fulltune.engine.prebuild
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any, Literal

import deepspeed.ops
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder.builder import OpBuilder

from fulltune import setup

logger = logging.getLogger(__name__)
BUILDERS = {setup.OP_NAME: "ShareMemCommBuilder", setup.CPU_ADAM: "CPUAdamBuilder"}


def attach(directory: Path | None = None) -> Literal["shm", "gloo", "unused"]:
    """Makes sure that `deepspeed.init_distributed` neither builds nor waits; call it once per worker, before that.

    Args:
        directory: the extensions folder of `fulltune.setup`; None for the default one.

    Returns:
        "shm" if the prebuilt op was loaded, "gloo" if there is none and it was switched off, "unused" where this
        accelerator's DeepSpeed has no such op (CUDA).
    """
    if get_accelerator().create_op_builder("ShareMemCommBuilder") is None:
        return "unused"
    directory = directory or setup.extensions_dir()
    if setup.is_ready(directory):
        OpBuilder._loaded_ops[setup.OP_NAME] = _load(setup.OP_NAME, directory)
        return "shm"
    # deepspeed.comm asks this table first, and deepspeed.ops keeps a single copy of it, so that the edit lasts
    deepspeed.ops.__compatible_ops__[setup.OP_NAME] = False
    return "gloo"


def cpu_adam() -> Any:
    """DeepSpeedCPUAdam, with its op loaded; the first worker of a host that asks builds it, the others wait for that.

    Its threads are OpenMP's: as many as `ray.cpus_per_worker`, since Ray sets OMP_NUM_THREADS from it.

    Raises:
        RuntimeError: the op cannot be built here.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    installed = importlib.util.find_spec(f"deepspeed.ops.adam.{setup.CPU_ADAM}_op")  # DS_BUILD_CPU_ADAM=1
    if setup.CPU_ADAM not in OpBuilder._loaded_ops and installed is None:
        directory = setup.extensions_dir()
        outcome = setup.prepare(directory, say=logger.warning, op=setup.CPU_ADAM)
        if not outcome.usable:
            raise RuntimeError(f"offloaded optimizer states need DeepSpeed's op {setup.CPU_ADAM}: {outcome.why}")
        OpBuilder._loaded_ops[setup.CPU_ADAM] = _load(setup.CPU_ADAM, directory)
    return DeepSpeedCPUAdam


def build(op: str = setup.OP_NAME) -> int:
    """Compiles and loads an op as a worker would have; returns the exit code for `fulltune.setup`."""
    builder = get_accelerator().create_op_builder(BUILDERS[op])
    if builder is None:
        return setup.NOT_NEEDED
    builder.load(verbose=True)
    return 0


def _load(op: str, directory: Path) -> Any:
    library = setup.library_path(directory, op)
    spec = importlib.util.spec_from_file_location(op, library)
    if spec is None or spec.loader is None:
        raise ImportError(
            f"no loader for the compiled op {library}; delete its folder and run python -m fulltune.setup"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(build(*sys.argv[1:]))
