"""The function that Ray Train runs on every worker. It lives in a module of its own, never in `__main__`: functions of
`__main__` are pickled by value and would carry their globals along."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulltune.config import RunConfig


def train_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """One worker's part of a training run.

    Args:
        payload: `config` (a RunConfig as a mapping) and the folders of `fulltune.session.Inputs`.

    Returns:
        `finished` and `step`; or `user_error` (got, wanted, fix) or `error`, for what a retry cannot mend.
    """
    import ray.train

    from fulltune import comm, session
    from fulltune.config import resolve
    from fulltune.train import NonFinite
    from ray_jobs import standby, streaming
    from tasks.base import UserError

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    config = resolve(payload["config"], origin="the resolved configuration")
    context = ray.train.get_context()
    workers = comm.Workers(rank=context.get_world_rank(), size=context.get_world_size())
    inputs = session.Inputs(
        model=Path(payload["model"]),
        train_data=Path(payload["train_data"]),
        valid_data=Path(payload["valid_data"]) if payload["valid_data"] else None,
        run=Path(payload["run"]),
    )
    session.write_presence(inputs.run, workers)
    try:
        comm.agreed(workers, lambda: attach(config))
        stream = streaming.share if config.data.loader == "streaming" else None
        with standby.kept(_spares(config, context)):
            result = session.run(config, inputs, workers, say=lambda line: _say(inputs.run, line), stream=stream)
    except UserError as error:
        return {"user_error": (error.got, error.wanted, error.fix)}
    except (NonFinite, comm.Disagreement) as error:
        return {"error": str(error)}
    return {"step": result.step, "finished": result.finished}


def _spares(config: RunConfig, context: Any) -> int:
    """How many processes this worker asks for: the first of a node asks for all, where a failure leads to a restart."""
    asks = config.ray.standby and config.ray.max_failures != 0 and context.get_local_rank() == 0
    return int(context.get_local_world_size()) if asks else 0


def attach(config: RunConfig) -> None:
    """Takes the device that Ray gave this worker; on CPUs, DeepSpeed's op as far as it is built."""
    if config.ray.use_gpu:
        import ray.train.torch

        from fulltune import device

        dtype = device.dtype_name(config.model.dtype, use_gpu=True)
        device.attach(ray.train.torch.get_device(), dtype, deterministic=config.train.deterministic)
        return
    from fulltune.engine import prebuild

    prebuild.attach()


def _say(run: Path, line: str) -> None:
    """Appends to the run's `messages.log`, which the driver follows: worker output would reach it late and garbled."""
    with (run / "messages.log").open("a", encoding="utf-8") as handle:
        handle.write(line + "\n")
