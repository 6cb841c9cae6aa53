"""Saves the state of a run beside its training: copy now, write and publish in a thread.

    save: former save done? -> stage -> every worker copies its shard -> room? -> thread: write, flush, hash, publish

The training waits for the copy only. Workers agree (in collectives, on the main thread) when a save begins and when
one ends; in between they meet in files, so that no collective of a save runs beside one of the training. At most one
save is under way, and whoever ends a run waits for it. An error shows at the next step through `failed`.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from fulltune import commit
from fulltune.checkpoint import Peers, name
from fulltune.mirror import Mirror
from tasks.base import UserError

PATIENCE_S = 3600.0  # for the slowest worker's shard
POLL_S = 0.05
SETTLE_S = 60.0  # for a save that is under way when the training fails
MARGIN = 2**20  # manifest, random states, tokenizer


class Shard(Protocol):
    """One worker's copied part of a checkpoint (`fulltune.engine.snapshot.Snapshot` and what is added to it)."""

    @property
    def bytes(self) -> int:
        """About how much it will take on disk."""

    def write(self, folder: Path) -> list[Path]:
        """Writes the files below `folder` and returns their paths."""


@dataclass
class _Job:
    """A save under way on this worker."""

    step: int
    stage: Path
    shard: Shard
    meta: Mapping[str, Any]
    uploads: bool
    not_uploaded: str | None = None
    done: threading.Event = field(default_factory=threading.Event)
    abandoned: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


@dataclass
class Saver:
    """The saves of one worker; every worker has one and calls the same methods in the same order.

    Attributes:
        root: the folder of the checkpoints.
        beside: write in a thread; otherwise `save` returns when the checkpoint is published.
        say: prints a line for the user.
        protect: steps that stay whatever their age, asked on worker 0 after publishing.
        mirror: where every checkpoint is uploaded to as well. An upload that fails costs the copy, with a message: the
            checkpoint is safe in `root`, and the next save uploads again.
    """

    root: Path
    peers: Peers
    keep_last: int
    beside: bool
    say: Callable[[str], None]
    mirror: Mirror | None = None
    protect: Callable[[], Collection[int]] = tuple
    _job: _Job | None = field(default=None, init=False)

    def save(self, step: int, take: Callable[[Path], Shard], *, meta: Mapping[str, Any], last: bool) -> None:
        """Saves the state after `step`.

        Without room for it a save in the middle of a run is left out with a message: the training is worth more than
        one checkpoint, and the next save tries again. The last one must not be left out.

        Args:
            take: copies this worker's part, given a folder of its own below the stage.
            last: whether this is the last chance to save.

        Raises:
            UserError: no room for the last checkpoint, or the former save ran out of it.
            RuntimeError: the former save failed on a worker.
        """
        self.wait()
        stage, uploads = self._open(step)
        shard = take(stage / f".scratch-{self.peers.rank}")
        sizes, lasts = zip(*self.peers.gather((shard.bytes, last)), strict=True)
        free = self.peers.gather(commit.free_bytes(self.root) if self.peers.rank == 0 else 0)[0]
        if free < sum(sizes) + MARGIN:
            self._leave_out(step, stage, sum(sizes) + MARGIN, free, last=any(lasts))
            return
        self._job = _Job(step, stage, shard, meta, uploads)
        threading.Thread(target=self._write, args=(self._job,), daemon=True, name=f"save step {step}").start()
        if not self.beside:
            self.wait()

    def failed(self) -> bool:
        """Whether this worker's part of the save under way has failed; asked at every step."""
        return self._job is not None and self._job.error is not None

    def wait(self) -> None:
        """Waits for the save under way; all workers agree on how it ended.

        Raises:
            UserError: there was no room for it.
            RuntimeError: another error on some worker; the checkpoints before it are intact.
        """
        job, self._job = self._job, None
        if job is None:
            return
        while True:
            states = self.peers.gather((job.done.is_set(), _described(job.error), job.not_uploaded))
            failures = [(rank, error) for rank, (_, error, _) in enumerate(states) if error is not None]
            if failures or all(done for done, _, _ in states):
                break
            job.done.wait(POLL_S)
        if failures:
            self._give_up(job, *failures[0])
        self._tell_of_uploads(job.step, {rank: why for rank, (_, _, why) in enumerate(states) if why is not None})

    def settle(self) -> None:
        """When the training failed: lets the save under way end if it soon can. Other workers are not asked."""
        if self._job is not None:
            self._job.done.wait(SETTLE_S)
            self._job.abandoned.set()

    def _give_up(self, job: _Job, rank: int, error: tuple[str, str, str] | str) -> NoReturn:
        job.abandoned.set()
        job.done.wait()
        self.peers.barrier()
        if self.peers.rank == 0:
            commit.discard_stage(job.stage)
        if isinstance(error, tuple):
            raise UserError(*error)
        raise RuntimeError(f"worker {rank} could not save step {job.step}: {error}") from job.error

    def _open(self, step: int) -> tuple[Path, bool]:
        """The stage folder, the same for all workers, made by worker 0; and whether the store takes uploads."""
        label, refused = f"{name(step)}-{uuid.uuid4().hex[:8]}", None
        if self.peers.rank == 0:
            commit.open_stage(self.root, label)
            refused = self._cleared(step)
        label, refused = self.peers.gather((label, refused))[0]
        if refused is not None:
            self._tell_of_uploads(step, {0: refused})
        return self.root / f"{commit.STAGE}{label}", self.mirror is not None and refused is None

    def _cleared(self, step: int) -> str | None:
        """Makes room for the step's name on the store; the error's text if that cannot be done."""
        try:
            if self.mirror is not None:
                self.mirror.clear(step)
        except OSError as error:
            return str(error)
        return None

    def _tell_of_uploads(self, step: int, refused: Mapping[int, str]) -> None:
        for rank, why in refused.items():
            self.say(
                f"{name(step)} was not uploaded, worker {rank}: {why}; it is safe in {self.root}, and the next save "
                "uploads again"
            )

    def _leave_out(self, step: int, stage: Path, needed: int, free: int, *, last: bool) -> None:
        if self.peers.rank == 0:
            commit.discard_stage(stage)
        self.peers.barrier()
        got = f"{self.root} has {free / 1e9:.2f} GB free, the checkpoint of step {step} takes {needed / 1e9:.2f} GB"
        if last:
            raise UserError(
                got=got,
                wanted="room for one more checkpoint beside those that are kept",
                fix="free space or lower checkpoint.keep_last, then run the same command: it resumes after the last "
                "checkpoint",
            )
        self.say(f"not saved: {got}; training goes on, the next save tries again")

    def _write(self, job: _Job) -> None:
        try:
            files = job.shard.write(job.stage)
            self._upload(job, lambda mirror: mirror.put(job.step, job.stage, files))
            commit.write_part(job.stage, self.peers.rank, files)
            if self.peers.rank == 0:
                self._publish(job)
                self._upload(job, lambda mirror: mirror.publish(self.root, job.step))
        except BaseException as error:  # a thread's error has nobody to go to: the main thread asks for it
            job.error = error
        finally:
            job.done.set()

    def _publish(self, job: _Job) -> None:
        commit.publish(
            self.root,
            job.stage,
            step=job.step,
            size=self.peers.size,
            meta=job.meta,
            keep_last=self.keep_last,
            protect=self.protect,
            patience_s=PATIENCE_S,
            abandoned=job.abandoned,
        )

    def _upload(self, job: _Job, what: Callable[[Mirror], None]) -> None:
        """Does that unless the store has refused this save already; notes why it refuses."""
        if self.mirror is None or not job.uploads or job.not_uploaded is not None:
            return
        try:
            what(self.mirror)
        except OSError as error:
            job.not_uploaded = str(error)


def _described(error: BaseException | None) -> tuple[str, str, str] | str | None:
    """What can be sent to other workers: a user error's three parts, another error's text."""
    if error is None:
        return None
    if isinstance(error, OSError) and error.errno in commit.NO_ROOM:
        return (
            f"no space left while a checkpoint was written ({error})",
            "room for one more checkpoint beside those that are kept",
            "free space or lower checkpoint.keep_last, then run the same command; earlier checkpoints are intact",
        )
    return f"{type(error).__name__}: {error}"
