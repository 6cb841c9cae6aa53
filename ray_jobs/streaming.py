"""`data.loader: streaming`: the workers take their share of a data set that is tokenised while they train.

Ray Data reads and encodes (`ray_jobs.tokenise`), Ray Train hands out the shares, `fulltune.stream` makes steps of them.
For corpora that are larger than a disk: nothing is written, the source is read again in every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray.train

from fulltune import data
from fulltune.config import RunConfig
from ray_jobs import cluster, tokenise
from ray_jobs.prepare import Prepared, training_sources
from tasks.base import UserError

CHUNK_ROWS = 256  # shares of the workers differ by so many rows at most


class WholeShares(ray.train.DataConfig):
    """Splits a stream over the workers and drops nothing.

    Ray Train's own split makes the shares equal by leaving rows out at the end. Here they differ by a chunk at most and
    their order is the same at every start; dummies even out the number of micro-batches.
    """

    def configure(self, datasets: dict[str, Any], world_size: int, *_: Any, **__: Any) -> list[dict[str, Any]]:
        """A shard of every data set for each worker."""
        shares = {name: dataset.streaming_split(world_size, equal=False) for name, dataset in datasets.items()}
        return [{name: share[rank] for name, share in shares.items()} for rank in range(world_size)]


def trainer_arguments(run: RunConfig, prepared: Prepared) -> dict[str, Any]:
    """What Ray Train's trainer takes for a streaming run; nothing for another.

    Raises:
        UserError: the training workers leave no CPU on which the stream could be tokenised.
    """
    if run.data.loader != "streaming":
        return {}
    free = cluster.free_cpus(run.ray)
    if free < 1:
        raise UserError(
            got=f"data.loader: streaming with {run.ray.max_workers} workers of {run.ray.cpus_per_worker:g} CPUs each, "
            f"which leaves {max(0.0, free):g} CPUs",
            wanted="at least 1 CPU to tokenise on while they train",
            fix="lower ray.cpus_per_worker or ray.num_workers, join a larger cluster, or take data.loader=exact",
        )
    source = replace(training_sources(run)[0], chunk_rows=CHUNK_ROWS)
    chunks = tokenise.dataset(source, prepared.inputs.model, run.data, special_tokens=())
    return {"datasets": {"train": chunks}, "dataset_config": WholeShares()}


def share(epoch: int) -> Iterator[data.Encoded]:
    """A worker's part of an epoch; it starts for all when the last of them asks for it."""
    shard = ray.train.get_dataset_shard("train")
    return tokenise.chunks_of(shard.iter_batches(batch_size=None, batch_format="pyarrow"))
