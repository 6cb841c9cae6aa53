"""The universal form of a checkpoint: made once, by worker 0, and kept beside the checkpoint for every later start.

    checkpoints/step-00000120/   ->   checkpoints/universal-step-00000120/

It is committed and verified like a checkpoint: a form that is torn, changed, or made from other bytes is made again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from fulltune import commit
from fulltune.checkpoint import MANIFEST, Found, Peers, damage, sha256
from tasks.base import UserError

POLL_S = 0.5
WHILE_CONVERTING = 2  # checkpoints' worth of space: fragments, and the joined states


def universal(
    found: Found, peers: Peers, convert: Callable[[Path, Path], list[Path]], say: Callable[[str], None]
) -> Path:
    """The folder with the universal form of a verified checkpoint; every worker calls it.

    Args:
        convert: (checkpoint, out) -> the files it wrote below `out`.

    Raises:
        UserError: no room for it.
        RuntimeError: the conversion failed.
    """
    final = found.path.with_name(commit.UNIVERSAL + found.path.name)
    origin = sha256(found.path / MANIFEST)
    if _made_from(final, origin, peers) and not damage(final, peers):
        return final
    say(f"joining the shards of {found.path.name} for another number of workers; done once, kept in {final.name}")
    result = _InThread(lambda: _convert(found.path, final, origin, convert), run=peers.rank == 0)
    # a conversion may take longer than a collective is allowed to: many short ones in place of a long one
    while not all(peers.gather(result.done.wait(POLL_S))):
        pass
    error = peers.gather(result.error)[0]
    if isinstance(error, UserError):
        raise error
    if error is not None:
        raise RuntimeError(f"the shards of {found.path.name} could not be joined: {error!r}") from result.error
    return final


class _InThread:
    """A function on its way; where it does not run it is done at once."""

    def __init__(self, work: Callable[[], None], *, run: bool) -> None:
        self._work = work
        self.done = threading.Event()
        self.error: BaseException | None = None
        if run:
            threading.Thread(target=self._run, daemon=True, name="convert").start()
        else:
            self.done.set()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # handed to all workers by the caller
            self.error = error
        finally:
            self.done.set()


def _made_from(final: Path, origin: str, peers: Peers) -> bool:
    """Whether worker 0 sees a finished form of exactly this checkpoint."""
    known = None
    if peers.rank == 0:
        with contextlib.suppress(OSError, ValueError, KeyError):
            known = json.loads((final / MANIFEST).read_text())["origin"]
    return bool(peers.gather(known)[0] == origin)


def _convert(source: Path, final: Path, origin: str, convert: Callable[[Path, Path], list[Path]]) -> None:
    files = json.loads((source / MANIFEST).read_text())["files"]
    needed = WHILE_CONVERTING * sum(entry["bytes"] for entry in files.values())
    free = commit.free_bytes(source.parent)
    if free < needed:
        raise UserError(
            got=f"{source.parent} has {free / 1e9:.2f} GB free, joining the shards of {source.name} takes "
            f"{needed / 1e9:.2f} GB",
            wanted="room to resume with another number of workers",
            fix="free space, or resume with as many workers as before",
        )
    stage = commit.open_stage(source.parent, f"{final.name}-{uuid.uuid4().hex[:8]}")
    try:
        commit.publish_derived(stage, final, origin=origin, files=convert(source, stage))
    finally:
        shutil.rmtree(stage, ignore_errors=True)
