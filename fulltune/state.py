"""What a worker puts into a checkpoint and takes out of it: its shard, its random numbers, and the model's files.

The position in the data and the schedule are functions of the step number, so the step is all that is kept of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fulltune import checkpoint, comm, device, export, reshape
from fulltune.batches import Loader
from fulltune.engine import Engine, universal
from fulltune.engine.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker's part of a checkpoint, copied and not yet written.

    Attributes:
        random: states of torch's generators.
        place: where the worker is in the data, by file name; empty where the step number says it.
        model: on worker 0, the folder with config and tokenizer.
    """

    rank: int
    shard: Snapshot
    random: dict[str, torch.Tensor]
    place: dict[str, str]
    model: Path | None

    @property
    def bytes(self) -> int:
        """Of the shard; the rest is small."""
        return self.shard.bytes

    def write(self, folder: Path) -> list[Path]:
        """Writes the files below `folder` and returns their paths."""
        files = self.shard.write(folder)
        files.append(folder / f"rng-{self.rank}.pt")
        torch.save(self.random, files[-1])
        for name, text in self.place.items():
            files.append(folder / name)
            files[-1].write_text(text)
        return files + (export.keep_model_files(self.model, folder) if self.model is not None else [])


def take(engine: Engine, loader: Loader, model: Path, workers: comm.Workers, scratch: Path) -> WorkerState:
    """Copies this worker's state as it is now; every worker calls it."""
    return WorkerState(
        rank=workers.rank,
        shard=engine.snapshot(scratch),
        random=device.random_states(engine.device),
        place=loader.files(),
        model=model if workers.rank == 0 else None,
    )


def restore(engine: Engine, found: checkpoint.Found, workers: comm.Workers, *, seed: int, say: comm.Say) -> None:
    """Takes the state of a verified checkpoint, also where another number of workers wrote it.

    As many workers get their own shards and random numbers back, to the last bit. Another number loads the universal
    form, and every worker starts a random stream of its own from the run's seed, the step and its rank.
    """
    if found.workers == workers.size:
        engine.load(found.path)
        states = torch.load(found.path / f"rng-{workers.rank}.pt", weights_only=True, map_location="cpu")
        device.set_random_states(states, engine.device)
        return
    if engine.stage == 0:  # nothing is cut
        engine.load(found.path)
    else:
        engine.load_universal(reshape.universal(found, workers, universal.convert, say))
    stream = np.random.SeedSequence([seed, found.step, workers.rank])
    torch.manual_seed(int(stream.generate_state(1, np.uint64)[0]))
    say(f"{found.path.name} was written by {found.workers} workers and is taken up by {workers.size}")
