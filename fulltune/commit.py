"""The commit protocol: how a checkpoint becomes visible, and nothing else about it.

    open_stage -> write_part (every worker: its own files, flushed and hashed) -> publish (worker 0)

Nothing has its final name before every file was written, flushed and hashed: workers write into a stage folder and
leave a part with sizes and hashes beside their files; worker 0 waits for all parts, joins them into the manifest,
renames the folder, moves the pointer and only then deletes what has become old. Workers meet in files, not in
collectives, so that all of this can run beside the training. `fulltune.checkpoint` reads.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fulltune.checkpoint import MANIFEST, POINTER, name, pointer, published, sha256

STAGE = ".stage-"
UNIVERSAL = "universal-"  # + a checkpoint's name: the same states, cut for any number of workers
POLL_S = 0.02
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def open_stage(root: Path, label: str) -> Path:
    """An empty stage folder; what killed attempts left behind is removed. Worker 0 calls it, with no save under way.

    Args:
        label: unique to this save, so that a worker that was believed dead cannot write into it.
    """
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(f"{STAGE}*"):
        shutil.rmtree(left, ignore_errors=True)
    stage = root / f"{STAGE}{label}"
    stage.mkdir()
    return stage


def free_bytes(root: Path) -> int:
    """What the file system below `root` still takes."""
    return shutil.disk_usage(root).free


def write_part(stage: Path, rank: int, files: Iterable[Path]) -> None:
    """Flushes and hashes this worker's files, then says so in its part, which is there whole or not at all."""
    entries = {str(file.relative_to(stage)): _flush_and_hash(file) for file in files}
    write_atomically(_part(stage, rank), json.dumps(entries))


def publish(
    root: Path,
    stage: Path,
    *,
    step: int,
    size: int,
    meta: Mapping[str, Any],
    keep_last: int,
    protect: Callable[[], Collection[int]] = tuple,
    patience_s: float,
    abandoned: threading.Event,
) -> Path:
    """Worker 0's part of the protocol: parts -> manifest -> rename -> pointer -> what is old goes.

    Args:
        meta: stored in the manifest. `meta["valid_loss"]`, if there, decides which checkpoint is the best.
        keep_last: how many of the newest stay; the best one stays as well if `meta` has a validation loss.
        protect: steps that stay whatever their age, asked after publishing.

    Raises:
        TimeoutError: a worker's part did not come within `patience_s`, or the save was abandoned.
    """
    files = _await_parts(stage, size, patience_s, abandoned)
    if not (root / POINTER).exists() and not published(root):
        write_atomically(root / POINTER, json.dumps({"step": 0}))  # a crash after the rename must not look like a loss
    final = root / name(step)
    _seal(stage, final, {"step": step, "workers": size, "meta": dict(meta), "files": files})
    _point(root, step, meta.get("valid_loss"))
    prune(root, keep_last, protect())
    return final


def publish_derived(stage: Path, final: Path, *, origin: str, files: Sequence[Path]) -> None:
    """Commits a folder that was computed from a checkpoint; `origin` says from which. No pointer moves."""
    entries = {str(file.relative_to(stage)): _flush_and_hash(file) for file in files}
    _seal(stage, final, {"origin": origin, "files": entries})


def publish_copy(root: Path, stage: Path, step: int, *, best: Mapping[str, Any]) -> None:
    """Commits a verified copy of a checkpoint, manifest included, into a run folder that has no other.

    The pointer goes first: a crash before the rename leaves one that leads nowhere, which is never taken for a start.
    """
    for path in stage.rglob("*"):
        if path.is_file():
            _flush_and_hash(path)
    write_atomically(root / POINTER, json.dumps({"step": step} | dict(best)))
    _rename(stage, root / name(step))


def sync_folder(folder: Path) -> None:
    """Makes names in a folder durable; a rename is not before this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard_stage(stage: Path) -> None:
    """Gives the space of an unfinished save back."""
    shutil.rmtree(stage, ignore_errors=True)


def _part(stage: Path, rank: int) -> Path:
    return stage / f".part-{rank:05d}.json"


def _await_parts(stage: Path, size: int, patience_s: float, abandoned: threading.Event) -> dict[str, Any]:
    """The entries of all workers; their parts are removed, the manifest takes their place."""
    deadline = time.monotonic() + patience_s
    parts = [_part(stage, rank) for rank in range(size)]
    while missing := [part for part in parts if not part.exists()]:
        if time.monotonic() > deadline or abandoned.wait(POLL_S):
            names = ", ".join(part.name for part in missing)
            raise TimeoutError(f"{stage.name}: {names} of {size} workers did not come within {patience_s:.0f} s")
    files = {path: entry for part in parts for path, entry in json.loads(part.read_text()).items()}
    for part in parts:
        part.unlink()
    return files


def _seal(stage: Path, final: Path, manifest: Mapping[str, Any]) -> None:
    """The manifest as the last file, everything flushed, then the name that makes it exist."""
    _write_durably(stage / MANIFEST, json.dumps(manifest, indent=1))
    _rename(stage, final)


def _rename(stage: Path, final: Path) -> None:
    for folder in [stage, *(path for path in stage.rglob("*") if path.is_dir())]:
        sync_folder(folder)
    if final.exists():  # a damaged checkpoint of the same step, passed over at resume
        _discard(final)
    os.replace(stage, final)
    sync_folder(final.parent)


def _point(root: Path, step: int, valid_loss: float | None) -> None:
    content = pointer(root) | {"step": step}
    if content.get("best", 0) > step:  # that future was undone by resuming from an earlier checkpoint
        content.pop("best")
        content.pop("best_valid_loss")
    if valid_loss is not None and valid_loss < content.get("best_valid_loss", float("inf")):
        content |= {"best": step, "best_valid_loss": valid_loss}
    write_atomically(root / POINTER, json.dumps(content))


def prune(root: Path, keep_last: int, protect: Collection[int] = ()) -> None:
    """Removes all but the newest `keep_last`, the best, and the protected ones; and those of a future that was undone.

    One process at a time calls it.
    """
    current = pointer(root)
    not_undone = [step for step in published(root) if step <= current["step"]]
    kept = {*not_undone[-keep_last:], current.get("best"), *(step for step in protect if step in not_undone)}
    for step in published(root):
        if step not in kept:
            _discard(root / name(step))
    for derived in root.glob(f"{UNIVERSAL}*"):
        if not (root / derived.name.removeprefix(UNIVERSAL)).exists():
            _discard(derived)


def _discard(folder: Path) -> None:
    """Takes the name away first, so that half a checkpoint never carries one."""
    doomed = folder.with_name(f"{STAGE}old-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _flush_and_hash(file: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def write_atomically(file: Path, text: str) -> None:
    """The file has its old content or all of the new one, whenever the machine stops."""
    temporary = file.with_name(f".tmp-{file.name}")
    _write_durably(temporary, text)
    os.replace(temporary, file)
    sync_folder(file.parent)


def _write_durably(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
